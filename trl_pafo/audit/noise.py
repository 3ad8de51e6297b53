"""What of a dataset's disagreement is annotator noise: estimated from common pairs, or known by construction."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_pafo.audit.ceiling import (
    half_of_pairs,
    majority_of_others,
    noise_ceiling,
    support_on,
    taste_or_noise,
    user_weights,
    with_interval,
)
from trl_pafo.audit.votes import Votes, votes_of
from trl_pafo.data.messages import content_key
from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.splits import MINORITY_QUANTILE
from trl_pafo.errors import DataError
from trl_pafo.metrics import spearman
from trl_pafo.metrics.accuracy import FloatArray

# Sources whose labels are made from a user's type or weights: the same pair is judged by rule, so agreement says nothing.
MADE_SOURCES = ("styles", "dsp", "personal_llm")
_SPLITS = 10


class LabelNoise:
    """
    The labels that people gave on common pairs, and what follows from them.

    Args:
        data ([`~trl_pafo.data.sources.arguments.DataArguments`]):
            Where the pairs come from.
        rows ([`~datasets.Dataset`]):
            The pairs that are audited. For `ukp_convarg`, all votes of the source are compared, also those that a run leaves out.
        num_resamples (`int`):
            Resamples over users.
        seed (`int`):
            Seed of resamples and halvings.

    Attributes:
        measured (`bool`):
            Whether the groups were cut from agreement on these votes.
        summary (`dict`):
            For audit.json: `known` (1 - label noise) for made labels, else what [`~trl_pafo.audit.ceiling.noise_ceiling`] and
            [`~trl_pafo.audit.ceiling.taste_or_noise`] give; `reason` where nothing can be said.
    """

    def __init__(self, data: DataArguments, rows: Dataset, num_resamples: int, seed: int):
        self._seed, self._num_resamples = seed, num_resamples
        self._votes: Votes | None = None
        self.measured = False
        self.summary: dict[str, Any] = {}
        if data.source in MADE_SOURCES:
            noise = 0.0 if data.source == "personal_llm" and not (data.majority and data.minority) else data.label_noise
            self.summary = {"known": 1.0 - noise, "reason": "The labels are made: a user's type or weights decide each pair."}
            return
        everything = _all_votes(data, rows)
        votes = votes_of(everything)
        try:
            self.summary = noise_ceiling(votes, num_resamples=num_resamples, seed=seed)
        except DataError as error:
            self.summary = {"reason": str(error)}
            return
        self._votes = votes
        self._place = {_key(row): number for number, row in enumerate(everything)}
        group_of = dict(zip(rows["user"][:], rows["group"][:], strict=True))
        largest = Counter(group_of.values()).most_common(1)[0][0]
        minority: Any = {user: group != largest for user, group in group_of.items()}
        self.measured = _support_is_measured(rows)
        if self.measured:
            given = data.minority_threshold is not None
            minority = sum(minority.values()) / len(minority) if given else data.minority_quantile or MINORITY_QUANTILE
        try:
            self.summary["taste_or_noise"] = taste_or_noise(votes, minority, num_resamples=num_resamples, seed=seed)
        except DataError as error:
            self.summary["taste_or_noise"] = {"reason": str(error)}

    def ceiling_of(self, rows: Dataset) -> FloatArray | None:
        """Whether the majority of the others is right about each row, NaN without others; `None` where no ceiling is known."""
        if self._votes is None:
            return None
        return majority_of_others(self._votes)[self._places(rows)]

    def trend_apart(self, correct: FloatArray, rows: Dataset) -> dict[str, float] | None:
        """Spearman's correlation of user accuracy with support, the two measured on different halves of the pairs.

        Where support is agreement, one stroke of bad luck lowers both a user's support and its accuracy, so that the plain correlation
        is too high. Averaged over 10 random halvings; `None` where support is not agreement.
        """
        votes = self._votes
        if votes is None or not self.measured:
            return None
        place = self._places(rows)
        user = votes.user[place]
        weights = user_weights(len(votes.users), self._num_resamples, self._seed)
        found = []
        for split in range(_SPLITS):
            half = half_of_pairs(votes, self._seed + split)
            for judged, support in ((half, support_on(votes, ~half)), (~half, support_on(votes, half))):
                mine = judged[place]
                pairs = np.bincount(user[mine], minlength=len(votes.users))
                right = np.bincount(user[mine], correct[mine], len(votes.users))
                known = (pairs > 0) & ~np.isnan(support)
                if known.sum() > 2:
                    found.append(spearman(right[known] / pairs[known], support[known], weights[:, known]))
        return with_interval(np.mean(found, axis=0), len(np.unique(user))) if found else None

    def _places(self, rows: Dataset) -> Any:
        columns = ["prompt", "chosen", "rejected", "user"]
        return np.array([self._place[_key(row)] for row in rows.select_columns(columns)], dtype=np.int64)


def _all_votes(data: DataArguments, rows: Dataset) -> list[dict[str, Any]]:
    if data.source == "ukp_convarg":
        from trl_pafo.data.sources.ukp_convarg import read_pairs

        return list(read_pairs(Path(str(data.data_path))))
    return rows.select_columns(["prompt", "chosen", "rejected", "user"]).to_list()


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return (row["user"], *(content_key(row[name]) for name in ("prompt", "chosen", "rejected")))


def _support_is_measured(rows: Dataset) -> bool:
    """Whether users of one group differ in support, so that the groups were cut from it."""
    rates: dict[str, set[float]] = {}
    for group, rate in zip(rows["group"][:], rows["support_rate"][:], strict=True):
        rates.setdefault(group, set()).add(rate)
    return any(len(values) > 1 for values in rates.values())
