"""A run in a process of its own, so that one that fails, or for which memory runs out, takes nothing else with it."""

from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from trl_pafo.errors import DataError, RunFolderError
from trl_pafo.pipeline.apart import Apart
from trl_pafo.pipeline.worker import end_as_told, print_error, say_to
from trl_pafo.storage.files import lacks_room
from trl_pafo.study.doing import RunFailedError


def run_apart(options: Mapping[str, Any], log: Path, trial: bool = False) -> str | None:
    """Do a run, or a trial, which is judged on validation pairs; return what went wrong, `None` where nothing did.

    All that it says is appended to the file `log`.

    The process ends when this one does, however it does.

    Raises:
        RunFailedError: If trying its methods one by one would be in vain: its data cannot be prepared, or not be written.
    """
    apart = Apart(_run, dict(options), str(log), trial)
    try:
        try:
            error, of_run = apart.connection.recv()
        except EOFError:
            error, of_run = apart.how_it_ended(), False
        apart.process.join()
    finally:
        apart.end()
    if of_run:
        raise RunFailedError(error)
    return error  # type: ignore[no-any-return]


def _run(connection: Connection, options: dict[str, Any], log: str, trial: bool) -> None:
    end_as_told()
    say_to(log)
    try:
        do_run(options, trial)
    except Exception as error:
        said = " ".join(print_error(error).split())
        connection.send((said, is_of_run(error, Path(options["output_dir"]))))
    else:
        connection.send((None, False))


def do_run(options: Mapping[str, Any], trial: bool = False) -> None:
    """Do a run with these options, or a trial."""
    from trl_pafo.models.base_models import set_threads
    from trl_pafo.pipeline.run import Run
    from trl_pafo.study.config import parse
    from trl_pafo.study.tuning import TrialRun

    set_threads()
    run = (TrialRun if trial else Run)(*parse(options))
    if not run.model.use_peft:  # an adapter names the folder of its base, which is that of its own run
        run.folder.donors = donors_of(Path(options["output_dir"]))
    run()


def donors_of(folder: Path) -> tuple[Path, ...]:
    """The runs of the other settings on the same data with the same seeds: what a setting does not change is trained once."""
    cell, setting = folder.parent, folder.parent.parent
    return tuple(sorted(set(setting.parent.glob(f"*/{cell.name}/{folder.name}")) - {folder}))


def is_of_run(error: Exception, folder: Path) -> bool:
    """Whether a run in a folder would fail with each of its methods."""
    unprepared = isinstance(error, DataError) and not (folder / "data").exists()
    return unprepared or isinstance(error, OSError | RunFolderError) or lacks_room(error)
