"""Past pairs of users in a file that is appended to: what a service knows of its users."""

import os
import warnings
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from trl_pafo.data.checks import RESPONSES, TEXTS, check_columns, check_texts
from trl_pafo.data.history import history_of
from trl_pafo.data.labels import as_label
from trl_pafo.data.messages import content_key
from trl_pafo.data.overlap import pair_texts
from trl_pafo.data.sources.reading import parse_json_line
from trl_pafo.errors import DataError


class UserHistories:
    """
    Past pairs by user, from JSON Lines with `user`, `prompt`, `chosen`, `rejected`, the newest last.

    Memory holds where each line begins, not the texts. A line that is being appended, or was half written when its writer ended, is left
    out with a warning until it is complete.

    Args:
        path (`str` or `Path`):
            The file.

    Raises:
        DataError: If it cannot be read, or a line is no past pair; the message names the line.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._starts: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
        self._end = self._num_lines = 0
        self._prompts: set[str] = set()  # at most two: whether all are the same
        self._incomplete = 0
        try:
            self._file = open(self.path, "rb")  # noqa: SIM115  # kept open, since each row reads from it
        except (OSError, ValueError) as error:
            raise DataError(f"The past pairs {str(path)[:200]!r} cannot be read: {error}. Correct --users.") from error
        self.read_on()

    def read_on(self) -> None:
        """Read what was appended meanwhile.

        Raises:
            DataError: If a line is no past pair, at each call until that is corrected, or if the file has become shorter.
        """
        size = os.stat(self.path).st_size
        if size < self._end:
            raise DataError(f"{self.path} has become shorter since it was read. Only append to it; start again.")
        if size == self._end:
            return
        self._file.seek(self._end)
        for line in self._file:
            number = self._num_lines + 1
            if line.strip():
                try:
                    row = parse_json_line(line, str(self.path), number)
                except DataError:
                    if line.endswith(b"\n"):
                        raise
                    if self._incomplete != number:
                        self._incomplete = number
                        warnings.warn(
                            f"{self.path}, line {number}, the last, is not complete and left out until it is: it is being written, or its "
                            "writer was interrupted. In that case remove it before more is appended.",
                            stacklevel=2,
                        )
                    return
                check_columns(row, TEXTS, f"{self.path}, line {number}")
                check_texts(row, f"{self.path}, line {number}")
                self._starts[self.user_of(row, f"{self.path}, line {number}")].append(self._end)
                if len(self._prompts) < 2:
                    self._prompts.add(content_key(row["prompt"]))
            self._end, self._num_lines = self._end + len(line), number

    @staticmethod
    def user_of(row: Mapping[str, Any], place: str) -> str:
        """The `user` of a row as text; raises [`DataError`] where it has none."""
        try:
            user = as_label(row.get("user"))
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
        if user is None:
            raise DataError(f"{place} has no `user`. Name the user, as the file of past pairs does.")
        return user

    def attach(self, row: Mapping[str, Any], num_history: int | None, place: str) -> dict[str, Any]:
        """A row with the newest `num_history` past pairs of its user as `history`, newest first, as in training.

        A past pair on the prompt of the row is not among them. Where the row and all past pairs of all users have one prompt, such as a
        topic, it is one that shares a response with the row.

        Args:
            row (`Mapping`):
                A row to score, checked, with `user`.
            num_history (`int`, *optional*):
                `None` for all.
            place (`str`):
                Where it is, for errors.

        Raises:
            DataError: If it has no user or no `prompt`, or a history of its own.
        """
        if history_of(row) is not None:
            raise DataError(f"{place} has a history of its own, and --users gives it one. Leave out one of them.")
        if "prompt" not in row:
            raise DataError(f"{place} has no `prompt`, which --users needs to leave out past pairs on the same one. Give it.")
        past = islice(self._newest(self.user_of(row, place), row), num_history)
        return {**row, "history": list(past)}

    def _newest(self, user: str, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        one_prompt = self._prompts == {content_key(row["prompt"])}
        fields = ("chosen", "rejected") if one_prompt else ("prompt",)
        own = {content_key(row[name]) for name in (RESPONSES if one_prompt else fields) if name in row}
        for start in reversed(self._starts.get(user, ())):
            self._file.seek(start)
            past = parse_json_line(self._file.readline(), str(self.path), 0)
            if self.user_of(past, str(self.path)) != user:
                raise DataError(f"{self.path} was changed since it was read. Only append to it; start again.")
            if own.isdisjoint(pair_texts(past, fields)):
                yield {name: past[name] for name in TEXTS}
