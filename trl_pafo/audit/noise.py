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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from trl_pafo.data.groups import quantile_thresholds
from trl_pafo.data.labels import normalize_labels
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
MIN_VOTES_FOR_SUPPORT = 4
_COLUMNS = ["prompt", "chosen", "rejected", "user"]


@dataclass(frozen=True)
class Votes:
    """
    Labels of users on pairs whose two responses have one fixed order.

    Attributes:
        users (`list[str]`):
            The users, sorted.
        user, pair, label (`numpy.ndarray` of shape `(num_votes,)`):
            Of each vote: place of its user in `users`; number of its pair, below `num_pairs`; 0 if the first response was preferred,
            1 if the second was.
    """

    users: list[str]
    user: IntArray
    pair: IntArray
    label: IntArray
    num_pairs: int


def votes_of(rows: Iterable[dict[str, Any]]) -> Votes:
    """Votes of rows with `prompt`, `chosen`, `rejected` and `user`: pairs are the same if prompt and both responses are.

    Raises:
        DataError: If there is no row, or one has no user.
    """
    numbers: dict[tuple[str, str, str], int] = {}
    names, pairs, labels = [], [], []
    for row in rows:
        chosen, rejected = content_key(row["chosen"]), content_key(row["rejected"])
        key = (content_key(row["prompt"]), min(chosen, rejected), max(chosen, rejected))
        names.append(row["user"])
        pairs.append(numbers.setdefault(key, len(numbers)))
        labels.append(int(chosen > rejected))
    if not names:
        raise DataError("There is no vote to compare: the data holds no pairs.")
    users, codes = np.unique(normalize_labels(names, "user", "The votes"), return_inverse=True)
    return Votes(users.tolist(), codes.astype(np.int64), np.array(pairs), np.array(labels), len(numbers))


def others_votes(votes: Votes) -> tuple[IntArray, IntArray]:
    """How many labels of *other* users on the pair of each vote are the same as its label, and how many there are in all.

    Of a user who labels a pair more than once, no label is another's.

    Returns:
        Two integer arrays of shape `(num_votes,)`.
    """
    on_pair = np.zeros((votes.num_pairs, 2), dtype=np.int64)
    np.add.at(on_pair, (votes.pair, votes.label), 1)
    _, own = np.unique(votes.user * votes.num_pairs + votes.pair, return_inverse=True)
    by_owner = np.zeros((own.max() + 1, 2), dtype=np.int64)
    np.add.at(by_owner, (own, votes.label), 1)
    others = on_pair[votes.pair] - by_owner[own]
    return others[np.arange(len(own)), votes.label], others.sum(axis=1)


def majority_of_others(votes: Votes) -> FloatArray:
    """Whether the majority of the others is right about each vote: 1, 0, one half for a tie, NaN where nobody else voted."""
    same, total = others_votes(votes)
    return np.where(total > 0, 0.5 * (np.sign(2 * same - total) + 1.0), np.nan)


def mean_over_users(values: FloatArray, user: Any, seed: int = 0) -> dict[str, float]:
    """Mean of values in [0, 1], one a vote, with a 95 % interval over users: `value`, `low`, `high`."""
    return fairness_summary(values, user, None, seed=seed)["overall"]


def noise_ceiling(votes: Votes, *, seed: int = 0) -> dict[str, Any]:
    """How well the others' majority predicts a label, and within which bounds the best judge that does not see the user lies.

    Returns:
        `dict`: `leave_one_out` and `pairwise` (theta above), each with `value`, `low`, `high`; `best_shared_bounds`, `[theta, (1 +
        sqrt(2 theta - 1)) / 2]`; `num_votes` on common pairs, and `votes_a_pair` there.

    Raises:
        DataError: If fewer than 100 votes are on pairs that somebody else judged too.
    """
    same, total = others_votes(votes)
    common = total > 0
    if common.sum() < MIN_COMMON_VOTES:
        raise DataError(
            f"Only {int(common.sum())} of {len(common)} votes are on pairs that another user judged too, so annotator noise "
            f"cannot be estimated. Let at least {MIN_COMMON_VOTES} votes fall on common pairs."
        )
    users = votes.user[common]
    pairwise = mean_over_users(same[common] / total[common], users, seed)
    theta = pairwise["value"]
    return {
        "leave_one_out": mean_over_users(majority_of_others(votes)[common], users, seed),
        "pairwise": pairwise,
        "best_shared_bounds": [theta, 0.5 * (1.0 + float(np.sqrt(max(2.0 * theta - 1.0, 0.0))))],
        "num_votes": int(common.sum()),
        "votes_a_pair": float(common.sum() / len(np.unique(votes.pair[common]))),
    }


def support_on(votes: Votes, rows: NDArray[np.bool_]) -> FloatArray:
    """Leave-one-out support of each user on some of the votes; NaN with fewer than 4 common votes there."""
    same, total = others_votes(votes)
    kept = rows & (total > 0)
    counts = np.bincount(votes.user[kept], minlength=len(votes.users))
    sums = np.bincount(votes.user[kept], same[kept] / total[kept], minlength=len(votes.users))
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts >= MIN_VOTES_FOR_SUPPORT)


class LabelNoise:
    """
    What the labels that people gave on common pairs say of noise.

    Args:
        data ([`~trl_pafo.data.sources.arguments.DataArguments`]):
            Where the pairs come from.
        rows ([`~datasets.Dataset`]):
            The pairs that are audited. For `ukp_convarg`, all votes of the source are compared, also those that a run leaves out.
        seed (`int`):
            Seed of intervals.

    Attributes:
        minority_share (`float`, *optional*):
            Where the groups were cut from agreement on these votes, the share of people below the cut.
        summary (`dict`):
            `known` (1 - label noise) for made labels, else what [`noise_ceiling`] gives; `reason` where nothing can be said.
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
        if data.source == "ukp_convarg":
            from trl_pafo.data.sources.ukp_convarg import read_pairs

            everything = list(read_pairs(Path(str(data.data_path))))
        votes = votes_of(everything)
        try:
            self.summary = noise_ceiling(votes, seed=seed)
        except DataError as error:
            self.summary = {"reason": str(error)}
            return
        self._votes, self._keys = votes, self.keys_of(everything)
        self._ceilings = dict(zip(map(_key, everything), majority_of_others(votes).tolist(), strict=True))
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
        """Whether each user is below the cut, 1 or 0, by votes on other prompts than those held out (as [`keys_of`] names them); -1 with too few votes there.

        Raises:
            DataError: If support does not vary.
        """
        support = support_on(self._votes, np.array([prompt not in held_out for prompt in self._keys]))
        known = ~np.isnan(support)
        threshold = quantile_thresholds(support[known], self.minority_share or 0.0)[0]
        below = dict(zip(self._votes.users, np.where(known, support < threshold, -1).tolist(), strict=True))
        return np.array([below[user] for user in users], dtype=np.int64)

    def ceiling_of(self, rows: Dataset) -> FloatArray:
        """Whether the majority of the others is right about each row, NaN where nobody else judged it, or no ceiling is known."""
        return np.array([self._ceilings.get(_key(row), np.nan) for row in rows.select_columns(_COLUMNS)], dtype=np.float64)


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return (row["user"], *(content_key(row[name]) for name in ("prompt", "chosen", "rejected")))
