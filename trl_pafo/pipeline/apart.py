"""A process of its own: where it fails, or memory runs out for it, it takes nothing else with it."""

from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

_PATIENCE = 10.0
"""Seconds that a process has to remove what it has half written."""
KILLED = -9
"""Exit code of a process that was killed, as by Linux when memory runs out. Windows knows no `signal.SIGKILL`."""


class Apart:
    """A process that calls `target` with its end of a connection, whose other end is `connection`, and the arguments."""

    def __init__(self, target: Callable[..., None], *arguments: Any):
        context = get_context("spawn")  # a process that has used threads cannot be forked
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs, *arguments))
        self.process.start()
        theirs.close()

    def how_it_ended(self) -> str:
        """Of a process that has closed its end of the connection."""
        self.process.join(_PATIENCE)
        if self.process.exitcode == KILLED:
            return "its process was killed, as where memory runs out"
        return f"its process ended with status {self.process.exitcode}"

    def end(self) -> None:
        """Let the process remove what it has half written, and end."""
        self.process.terminate()
        self.process.join(_PATIENCE)
        self.process.kill()
        self.process.join()
        self.connection.close()
