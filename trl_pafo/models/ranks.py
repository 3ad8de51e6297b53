"""The processes that a launcher starts: the first decides and writes, the others follow. Stages of a run know nothing of it.

`PartialState` of accelerate waits no longer than `ddp_timeout`, half an hour, and leaves the others waiting where the first fails. Here
what the first does alone takes as long as it takes, and its error is that of all.
"""

import gc
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, gather_object

from trl_pafo.errors import ConfigError, RunFolderError, TrainingError, TrlPafoError
from trl_pafo.models.weights import complete_weights

_Found = TypeVar("_Found")
_ONE = {"distributed_type": DistributedType.NO, "num_processes": 1, "process_index": 0, "local_process_index": 0}
_SEEN_WITHIN = 10.0
"""Seconds in which all machines see a file that one has written."""
_SAID_WITHIN = 20.0
"""Seconds in which the processes come to an error that is that of all."""
_errors = count()


def num_processes() -> int:
    """How many processes do the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def processes() -> PartialState | None:
    """The processes that a launcher has started, if several."""
    if "LOCAL_RANK" in os.environ:  # some clusters set the other variables for a machine
        # accelerate has to be told that there is only a CPU, else it finds a single process.
        PartialState(cpu=not torch.accelerator.is_available())
    if num_processes() == 1:
        return None
    _group()  # before one of them can end: for one that has never come the others would wait without end
    return PartialState()


def is_first() -> bool:
    """Whether this process decides and writes."""
    return num_processes() == 1 or dist.get_rank() == 0


def on_first(work: Callable[[], _Found]) -> _Found:
    """What `work` returns, on all processes; the first alone calls it, and the others wait, however long that takes.

    An error is raised on all. What is returned is pickled. Meanwhile accelerate knows of one process: what usually waits for others does
    not, and a model that is loaded is not shared among them.
    """
    if num_processes() == 1:
        return work()
    if not is_first():
        return _hear()
    try:
        with replaced(PartialState(), **_ONE), complete_weights():
            found = work()
    except Exception as error:
        _tell_error(error)
        raise
    _tell(found)
    return found


def after_first(work: Callable[[], _Found]) -> _Found:
    """What `work` returns, called on each process, on the first before the others: they find what it leaves on the disk."""
    if not is_first():
        on_first(work)
        return work()
    found: list[_Found] = []
    on_first(lambda: found.append(work()))
    return found[0]


def together(lead: Callable[[Callable[[Path], None]], Any], work: Callable[[Path], None], *, one_output: bool) -> None:
    """Work that all processes do, if the first wants it done.

    Args:
        lead (`Callable`):
            Called on the first process alone, with a function of a path, which it may call once: then all call `work`.
        work (`Callable`):
            Called with that path; with one of a temporary folder on the other processes, if they do not write to `one_output` as a
            Trainer does, but would all write the same.
    """
    if num_processes() == 1:
        lead(work)
        return
    if not is_first():
        out = _hear()
        if out is not None:
            with TemporaryDirectory() as scratch:
                work(out if one_output else Path(scratch) / "output")
            PartialState().wait_for_everyone()
            _hear()
        return
    others_work = False

    def work_with_others(out: Path) -> None:
        nonlocal others_work
        _tell(out)
        others_work = True
        work(out)
        PartialState().wait_for_everyone()
        others_work = False

    try:
        lead(work_with_others)
    except Exception as error:
        if not others_work:  # else they do not listen: they have the same error, or the launcher ends them when this process ends
            _tell_error(error)
        raise
    _tell(None)


def forget_accelerator() -> None:
    """Make ready for a training after another: accelerate keeps the DeepSpeed configuration of a process's first, with its steps and its
    learning rate filled in, and refuses a second one."""
    if AcceleratorState._shared_state.get("deepspeed_plugins"):
        AcceleratorState._reset_state()


def check_same_folder(folder: Path) -> None:
    """Raise [`RunFolderError`] on all processes where one does not see what the first writes to a folder."""
    if num_processes() == 1:
        return

    def write() -> Path:
        path = folder / f"processes.{secrets.randbelow(10**12)}.tmp"
        path.touch()
        return path

    path = on_first(write)
    until = time.monotonic() + _SEEN_WITHIN
    while not (sees := path.exists()) and time.monotonic() < until:
        time.sleep(0.1)
    seen = _gather((sees, _who()))
    on_first(path.unlink)
    blind = [name for sees, name in seen if not sees]
    if blind:
        raise RunFolderError(
            f"{folder}, in which {seen[0][1]} writes, is not what {', '.join(blind)} sees there. Give an --output_dir on a disk that all "
            "machines share, by its absolute path."
        )


def same_model(name: str | Path, identity: str) -> str:
    """The `identity` of a model, a digest of it as this process sees it; all processes call this.

    Raises:
        ConfigError: On all processes, if one has other files than the first: a copy on the disk of its machine.
    """
    if num_processes() == 1:
        return identity
    (first, *others) = _gather((identity, _who(), str(name)))
    if differ := [who for found, who, _ in others if found != first[0]]:
        raise ConfigError(
            f"The model {first[2]!r} of {', '.join(differ)} is another one than that of {first[1]}. Give all machines the same files: "
            "a path on a disk that they share, or one revision in the caches of all."
        )
    return identity


def _who() -> str:
    return f"process {dist.get_rank()} on {socket.gethostname()}"


@contextmanager
def all_processes() -> Iterator[PartialState | None]:
    """The processes that a launcher has started, if several, for a command that all of them do: the first alone speaks, and all end at once."""
    found = processes()
    with one_voice():
        yield found
    leave()


@contextmanager
def one_voice() -> Iterator[None]:
    """What is printed, logged and warned of meanwhile, the first process alone says."""
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def say_once(error: str) -> None:
    """Say the error that ends this process, unless the first of those that a launcher has started ends with the same.

    The processes meet at the store of the launcher: some errors come before they are a group. Who ends makes the launcher end the others, so
    none ends before all have spoken. A process whose error is its own alone waits for the others as long as they may take, and no longer.
    """
    within, first, said = timedelta(seconds=_SAID_WITHIN), os.environ.get("RANK", "0") == "0", None
    if first:
        print(error, file=sys.stderr, flush=True)
    with suppress(dist.DistError, ValueError):  # nobody comes, or nothing says where to
        store, rank, num = next(dist.rendezvous("env://", timeout=within))
        store = dist.PrefixStore(f"trl_pafo_error_{next(_errors)}", store)
        if first:
            store.set("first", error)
        said = store.get("first").decode()
    if not first and said != error:
        print(error, file=sys.stderr, flush=True)
    if said is not None:
        with suppress(dist.DistError):
            store.set(str(rank), "")
            store.wait([str(each) for each in range(num)], within)


def leave() -> None:
    """End the group of the processes, all at once: as the interpreter ends, models that hold it would be in the way."""
    if num_processes() > 1:
        gc.collect()
        PartialState().wait_for_everyone()
        PartialState().destroy_process_group()
        _group.cache_clear()


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Inside, the owner has these attributes in the place of its own."""
    before = {name: getattr(owner, name) for name in values}
    vars(owner).update(values)
    try:
        yield
    finally:
        vars(owner).update(before)


@cache
def _group() -> Any:
    """A way between the processes without the time limit of trainings. One that ends closes it, which ends the waiting of others."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=365))


def _exchange(message: tuple[bool, Any] | None) -> tuple[bool, Any]:
    box = [message]
    try:
        dist.broadcast_object_list(box, src=0, group=_group())
    except RuntimeError as error:
        raise _ended(error) from error
    return box[0]  # type: ignore[return-value]


def _gather(mine: _Found) -> list[_Found]:
    try:
        return gather_object([mine])  # type: ignore[no-any-return]
    except RuntimeError as error:
        raise _ended(error) from error


def _ended(error: RuntimeError) -> TrainingError:
    return TrainingError(f"Another process has ended; what it has said last, on its machine, is the reason. ({error})")


def _tell(found: Any) -> None:
    _exchange((True, found))


def _tell_error(error: Exception) -> None:
    if not isinstance(error, TrlPafoError) and type(error).__module__ != "builtins":  # of another library: not all can be sent
        error = TrainingError(f"{type(error).__name__}: {error}")
    _exchange((False, error))


def _hear() -> Any:
    fine, found = _exchange(None)
    if not fine:
        raise found
    return found
