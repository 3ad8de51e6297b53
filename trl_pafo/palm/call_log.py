"""The answers of the oracle on disk, each as soon as it is there: an interrupted build loses none of them."""

import json
import os
from pathlib import Path
from typing import Any

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.core import OracleCall

_FORMAT = "trl-pafo portfolio calls 2"


class CallLog:
    """
    A JSON Lines file: the problem, then one answer a line, flushed to the disk before the search goes on.

    The problem is all that decides what the oracle answers, as JSON values, with `num_rewards`. A file that was written for a
    different one, or that holds a line that cannot be read, raises [`PortfolioError`].
    """

    def __init__(self, path: Path, problem: dict[str, Any]):
        self.path = path
        try:
            header = json.loads(json.dumps({"format": _FORMAT, **problem}))
        except (TypeError, ValueError) as error:
            raise PortfolioError(f"`problem` must hold JSON values, to be compared when a build resumes: {error}.") from error
        self.calls: list[OracleCall] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._read(header)
            if not path.exists() or path.stat().st_size == 0:
                self._append(header)
        except OSError as error:
            raise PortfolioError(f"{path} cannot be read or written: {error}. Choose another folder.") from error

    def append(self, call: OracleCall) -> None:
        """Write one answer; on return it is on the disk.

        Raises:
            PortfolioError: If the policy is no JSON value or path, or the disk is full.
        """
        try:
            self._append(call.to_json())
        except OSError as error:
            raise PortfolioError(f"{self.path} cannot be written: {error}. Free some space and build again.") from error
        self.calls.append(call)

    def _append(self, row: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, header: dict[str, Any]) -> None:
        if not self.path.exists():
            return
        text = self.path.read_bytes()
        complete = text.rfind(b"\n") + 1
        lines = text[:complete].splitlines()
        if not lines and not (json.dumps(header) + "\n").encode().startswith(text):
            raise PortfolioError(f"{self.path} holds no answers of a build. Choose another folder.")
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if number > 1:
                    self.calls.append(OracleCall.from_json(row, header["num_rewards"], f"{self.path}, line {number}"))
                elif changed := sorted(key for key in {*row, *header} if row.get(key) != header.get(key)):
                    detail = "; ".join(f"{key}: {row.get(key)!r} -> {header.get(key)!r}" for key in changed)
                    raise PortfolioError(f"{self.path} was written for a different problem ({detail}). Choose another folder.")
            except PortfolioError:
                raise
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise PortfolioError(f"{self.path}, line {number} cannot be read ({error}). Choose another folder.") from error
        if complete < len(text):
            # Interrupted while writing: nothing was built on that line, so it is cut off.
            os.truncate(self.path, complete)
