"""Which history each showing of a training pair has, or which group it names. A draw depends on seed, epoch and row alone, so that all
processes draw the same, and a training that goes on from a checkpoint sees what it would have seen."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from trl_pafo.data.history import history_of
from trl_pafo.data.named_groups import name_group
from trl_pafo.data.overlap import PairNumbers, telling_fields
from trl_pafo.data.rows import read_rows

_TRIES = 20
_KWARGS = "chat_template_kwargs"


class Showing(NamedTuple):
    """A training pair as it is shown once: its row, the row whose history it has, and how many past pairs of it."""

    row: int
    donor: int
    num_history: int


class HistoryDraw:
    """
    Draws the history of each showing of a training pair. (Not from the paper.)

    Without `tau`, a pair keeps its own history. With it, first a group is drawn, group g with a probability in proportion to
    `(share of g in the rows) ** (1 - tau)`: 0 draws groups as often as they are, 1 all equally often. If it is the group of the
    row, the pair has its own history; else that of a random row of the group, a donor, whose history does not hold the prompt of
    the pair (a response of it, where all pairs have one prompt), and under which the pair `fits`, such as by its length. With
    `min_history`, the number of past pairs is drawn too, evenly from it up to all that the history has.

    The rows come twice: as `given`, with `tau` with the columns of a pair, `history` (complete past pairs) and `group`, and as
    `messages`, with the history as it is shown in `chat_template_kwargs`.
    """

    times = 1
    """Showings of a row in an epoch."""

    def __init__(
        self,
        given: Dataset,
        messages: Dataset,
        seed: int,
        tau: float | None = None,
        min_history: int | None = None,
        fits: Callable[[int, int], bool] | None = None,
    ):
        self.seed, self.min_history, self._fits = seed, min_history, fits
        self.shares: NDArray[np.float64] | None = None
        """Probability of each group, in the order of their names."""
        self.without_donor: Counter[str] = Counter()
        """Rows of each group that no row of some other group can lend a history: there they keep their own."""
        self._own: list[tuple[int, ...]] = []
        self._seen: list[set[int]] = []
        self.num_past: list[int]
        """Past pairs in the history of each row, as it is shown."""
        if "chat_template_kwargs" in messages.column_names:
            self.num_past = [len(history_of(row) or []) for row in read_rows(messages, ["chat_template_kwargs"])]
        else:
            self.num_past = [0] * len(messages)
        if tau is None:
            return
        numbers = PairNumbers(telling_fields(given))
        for row in read_rows(given, [*numbers.fields, "history"]):
            self._own.append(numbers(row))
            self._seen.append({number for past in row["history"] or [] for number in numbers(past)})
        self._draw_groups(np.asarray(given["group"][:]), tau)

    def _draw_groups(self, group: NDArray[np.str_], tau: float) -> None:
        names, self._group = np.unique(group, return_inverse=True)
        weights = (np.bincount(self._group) / len(group)) ** (1 - tau)
        self.shares = weights / weights.sum()
        self._rows_of = [np.flatnonzero(self._group == g) for g in range(len(names))]
        for row, own in enumerate(self._group):
            others = (rows for g, rows in enumerate(self._rows_of) if g != own)
            if not all(any(self._lends(row, int(donor)) for donor in rows) for rows in others):
                self.without_donor[str(names[own])] += 1

    def _lends(self, row: int, donor: int) -> bool:
        if not self._seen[donor] or not self._seen[donor].isdisjoint(self._own[row]):
            return False
        return self._fits is None or self._fits(row, donor)

    def donor(self, row: int, group: int, rng: np.random.Generator) -> int | None:
        """A random row of a group, by its place, that can lend its history to the pair of a row; `None` where none can."""
        donors = self._rows_of[group]
        for donor in donors[rng.integers(len(donors), size=_TRIES)]:
            if self._lends(row, int(donor)):
                return int(donor)
        # Rare prompts in long histories: look at all before giving up.
        fitting = [int(donor) for donor in donors if self._lends(row, int(donor))]
        return int(rng.choice(fitting)) if fitting else None

    def __call__(self, row: int, epoch: int) -> Showing:
        """The showing of a row in an epoch."""
        rng = np.random.default_rng((self.seed, epoch, row))
        donor = row
        if self.shares is not None:
            drawn = int(rng.choice(len(self.shares), p=self.shares))
            if drawn != self._group[row]:
                found = self.donor(row, drawn, rng)
                donor = row if found is None else found
        most = self.num_past[donor]
        least = most if self.min_history is None else min(self.min_history, most)
        return Showing(row, donor, int(rng.integers(least, most, endpoint=True)))

    def shown(self, messages: Dataset, showing: Showing) -> dict[str, Any]:
        """The row of a showing, with the history that it has there."""
        row, donor = messages[showing.row], messages[showing.donor]
        history = donor[_KWARGS]["history"][: showing.num_history]
        return {**row, _KWARGS: {**row[_KWARGS], "history": history}}


class EveryGroup:
    """
    Shows each training pair under the name of every group, one after the other, in every epoch. (Not from the paper.)

    Args:
        group (`Sequence[str]`):
            The group of each row.
    """

    def __init__(self, group: Sequence[str]):
        self.names, self._first, self._group = np.unique(np.asarray(group), return_index=True, return_inverse=True)
        self.times = len(self.names)
        self.num_past = [0] * len(self._group)

    def __call__(self, row: int, time: int) -> Showing:
        """The showing of a row when it has been shown `time` times: first under its own group, then with a row of the group that is
        named as its donor.
        """
        group = (self._group[row] + time) % self.times
        return Showing(row, row if group == self._group[row] else int(self._first[group]), 0)

    def shown(self, messages: Dataset, showing: Showing) -> dict[str, Any]:
        """The row of a showing, with the name of its group."""
        return name_group(messages[showing.row], str(self.names[self._group[showing.donor]]))
