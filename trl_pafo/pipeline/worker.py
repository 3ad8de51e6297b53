"""What a process does that a run has started for its trainings. It loads what a training needs while its first job is on the way."""

import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from trl_pafo.errors import TrlPafoError


class Job(NamedTuple):
    """A training: its stage, the digest of that, and the file that gets all that is said."""

    stage: str
    digest: str
    log: str


def serve(connection: Connection) -> None:
    """Read the options of a run and then jobs, do each, and tell steps and its end; end when the other end is closed, or its process."""
    end_as_told()
    options, opened = connection.recv(), None
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        try:
            say_to(job.log)
            start = time.monotonic()
            run, stages = opened = opened or _open(*options)
            run.report = lambda *steps: connection.send(("steps", *steps))
            stage = run.ready(job.stage, stages)
            if stage.digest != job.digest:
                raise TrlPafoError(
                    "data, model or a file that the options name changed after the run was started. Start it again"
                )
            run.do(stage)
        except Exception as error:
            connection.send(("failed", print_error(error)))
        else:
            connection.send(("done", time.monotonic() - start))


def _open(run: Any, args: Any, model: Any) -> tuple[Any, Any]:
    from trl_pafo.pipeline.run import Run

    args.device  # noqa: B018  # what a TrainingArguments knows of its process
    opened = Run(run, args, model)
    return opened, opened.plan(prepares=False).stages


def print_error(error: Exception) -> str:
    """Print the traceback; return what is said of the error."""
    traceback.print_exc()
    known = isinstance(error, TrlPafoError | OSError)
    return str(error) if known else f"{type(error).__name__}: {error}"


def say_to(log: str) -> None:
    """Append all output to a file from now on."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(file, number)
    os.close(file)


def end_as_told() -> None:
    """Remove what is half-written at the first SIGTERM, and end; end at once when the process that has started this one ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first of them tells the others what to do
    signal.signal(signal.SIGTERM, _end)


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would end the removing
    sys.exit(1)


def _end_with_parent() -> None:
    """However it ends: what is half-written has no final name, and checkpoints are kept."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
