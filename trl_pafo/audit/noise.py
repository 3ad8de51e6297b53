"""What of people's disagreement is annotator noise. (Not from the paper.)

**The ceiling.** For each vote, the others who judged the same pair take a majority vote; the noise ceiling is the share of votes that it
predicts, a tie for one half. A model that does not see the user cannot beat the majority of *all* people, which the majority of a few
stands in for, and misses: **with few annotators the ceiling is too low.** How much is bounded. Let q be the share of people who prefer
one response of a pair, a pair's annotators being drawn at random. Two people agree with chance q^2 + (1 - q)^2, so their mean agreement,
which needs only two votes a pair, is theta = E[q^2 + (1 - q)^2]. The best judge that does not see the user is right with chance
E[max(q, 1 - q)] = (1 + E|2q - 1|) / 2, and since E[(2q - 1)^2] = 2 theta - 1 and x^2 <= |x| <= 1,

    theta <= E[max(q, 1 - q)] <= (1 + sqrt(2 theta - 1)) / 2.

A model that *sees the user* can pass the ceiling where disagreement is taste, not where it is noise.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from trl_pafo.data.groups import quantile_thresholds
from trl_pafo.data.messages import content_key
from trl_pafo.data.overlap import pair_texts, telling_fields
from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.splits import MINORITY_QUANTILE
from trl_pafo.errors import DataError
from trl_pafo.metrics import fairness_summary
from trl_pafo.metrics.accuracy import FloatArray, IntArray

# Sources whose labels are made from a user's type or weights: the same pair is judged by rule, so agreement says nothing.
MADE_SOURCES = ("styles", "dsp", "personal_llm")
MIN_COMMON_VOTES = 100
_COLUMNS = ["prompt", "chosen", "rejected", "user"]


def votes_of(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Votes of rows with `prompt`, `chosen`, `rejected` and `user`, as [`with_others`]: pairs are the same if prompt and both responses are."""
    numbers: dict[tuple[str, str, str], int] = {}
    votes = []
    for row in rows:
        chosen, rejected = content_key(row["chosen"]), content_key(row["rejected"])
        key = (content_key(row["prompt"]), min(chosen, rejected), max(chosen, rejected))
        votes.append((row["user"], numbers.setdefault(key, len(numbers)), int(chosen > rejected)))
    return with_others(pd.DataFrame(votes, columns=["user", "pair", "label"]))


def with_others(votes: pd.DataFrame) -> pd.DataFrame:
    """Votes beside what others say of the same pair. Of a user who labels a pair more than once, no label is another's.

    A row is a vote: `user`, `pair`, and `label`, which is 0 if the first response of the pair was preferred, 1 if the second was.
    Added are the number of others' labels on the pair, `others`, the share of them that are as this one, `agreement`, and whether
    their majority is right about it, `majority`: 1, 0, or one half for a tie. Both are NaN without others.
    """

    def of_others(*by: str) -> pd.Series:
        size, of_own = (votes.groupby(names)["label"].transform("size") for names in ([*by], [*by, "user"]))
        return size - of_own

    others = of_others("pair")
    agreement = of_others("pair", "label") / others  # NaN for 0 of 0
    return votes.assign(others=others, agreement=agreement, majority=0.5 * (np.sign(2 * agreement - 1) + 1))


def mean_over_users(values: FloatArray, user: Any, seed: int = 0) -> dict[str, float]:
    """Mean of values in [0, 1], one a vote, with a 95 % interval over users: `value`, `low`, `high`."""
    return fairness_summary(values, user, None, seed=seed)["overall"]


def noise_ceiling(votes: pd.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """How well the others' majority predicts a label, and within which bounds the best judge that does not see the user lies.

    Returns:
        `dict`: `leave_one_out` and `pairwise` (theta above), each with `value`, `low`, `high`; `best_shared_bounds`, `[theta, (1 +
        sqrt(2 theta - 1)) / 2]`; `num_votes` on common pairs, and `votes_a_pair` there.

    Raises:
        DataError: If fewer than 100 votes are on pairs that somebody else judged too.
    """
    common = votes[votes["others"] > 0]
    if len(common) < MIN_COMMON_VOTES:
        raise DataError(
            f"Only {len(common)} of {len(votes)} votes are on pairs that another user judged too, so annotator noise "
            f"cannot be estimated. Let at least {MIN_COMMON_VOTES} votes fall on common pairs."
        )
    pairwise = mean_over_users(common["agreement"].to_numpy(), common["user"], seed)
    theta = pairwise["value"]
    return {
        "leave_one_out": mean_over_users(common["majority"].to_numpy(), common["user"], seed),
        "pairwise": pairwise,
        "best_shared_bounds": [theta, 0.5 * (1.0 + float(np.sqrt(max(2.0 * theta - 1.0, 0.0))))],
        "num_votes": len(common),
        "votes_a_pair": len(common) / common["pair"].nunique(),
    }


class LabelNoise:
    """
    What the labels that people gave on common pairs say of noise.

    `rows` are the pairs that are audited. `minority_share` is the share of people below the cut, where the groups were cut from agreement
    on these votes. `summary` has `known` (1 - label noise) for made labels, else what [`noise_ceiling`] gives; `reason` where nothing can
    be said.
    """

    def __init__(self, data: DataArguments, rows: Dataset, seed: int):
        self._ceilings: dict[tuple[str, ...], float] = {}
        self._fields = telling_fields(rows)
        self.minority_share: float | None = None
        if data.source in MADE_SOURCES:
            noise = 0.0 if data.source == "personal_llm" and not (data.majority and data.minority) else data.label_noise
            self.summary: dict[str, Any] = {"known": 1.0 - noise}
            return
        everything = rows.select_columns(_COLUMNS).to_list()
        votes = votes_of(everything)
        try:
            self.summary = noise_ceiling(votes, seed=seed)
        except DataError as error:
            self.summary = {"reason": str(error)}
            return
        self._votes, self._prompts = votes, np.array(self.keys_of(everything))
        self._ceilings = dict(zip(map(_key, everything), votes["majority"].tolist(), strict=True))
        people = rows.select_columns(["user", "group", "support_rate"]).to_pandas().drop_duplicates()
        # Where users of one group differ in support, the groups were cut from it.
        if (people.groupby("group")["support_rate"].nunique() > 1).any():
            self.minority_share = data.minority_quantile or MINORITY_QUANTILE
            if data.minority_threshold is not None:
                self.minority_share = 1 - float(people["group"].value_counts(normalize=True).max())

    def keys_of(self, rows: Iterable[dict[str, Any]]) -> list[str]:
        """What names the prompt of each row, or its pair where all have one prompt."""
        return ["\n".join(pair_texts(row, self._fields)) for row in rows]

    def low_support(self, users: Sequence[str], held_out: Collection[str]) -> IntArray:
        """Whether each user is below the cut, 1 or 0, by votes on other prompts than those held out (as [`keys_of`] names them); -1 without a
        vote that others can confirm.

        Raises:
            DataError: If support does not vary.
        """
        kept = self._votes[~np.isin(self._prompts, list(held_out))]
        support = kept.groupby("user")["agreement"].mean().dropna().round(12)  # as `support_rate_by_agreement`
        below = support < quantile_thresholds(support.to_numpy(), self.minority_share or 0.0)[0]
        return below.astype(np.int64).reindex(users, fill_value=-1).to_numpy()

    def ceiling_of(self, rows: Dataset) -> FloatArray:
        """Whether the majority of the others is right about each row, NaN where nobody else judged it, or no ceiling is known."""
        return np.array([self._ceilings.get(_key(row), np.nan) for row in rows.select_columns(_COLUMNS)], dtype=np.float64)


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return (row["user"], *(content_key(row[name]) for name in ("prompt", "chosen", "rejected")))
