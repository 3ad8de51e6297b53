"""How well anybody could predict these labels: leave-one-out agreement of people who judged the same pairs. (Not from the paper.)

**The ceiling.** For each vote, the others who judged the same pair take a majority vote; the noise ceiling is the share of
votes that it predicts, a tie for one half. A model that does not see the user cannot do better than the majority of *all*
people, which the majority of a few others stands in for, and misses: **with few annotators the ceiling is too low.** How much
is not known, but bounded. Let q be the share of the population that prefers one response of a pair. A second person agrees with the
first with chance q^2 + (1 - q)^2, so the mean pairwise agreement, which needs no more than two votes a pair and has no such
bias, is theta = E[q^2 + (1 - q)^2]. The best judge that does not see the user is right with chance E[max(q, 1 - q)] =
(1 + E|2q - 1|) / 2, and since E[(2q - 1)^2] = 2 theta - 1 and x^2 <= |x| <= 1,

    theta <= E[max(q, 1 - q)] <= (1 + sqrt(2 theta - 1)) / 2.

This takes the people of a pair as drawn at random. A model that *sees the user* can pass the ceiling where disagreement is taste;
it cannot where it is noise.

**Taste or noise?** People of low support disagree with the others, by definition. If they hold another taste, they agree
*with each other* more than with the rest; if they are careless, they do not. Support and agreement must then come from different
pairs, or chance alone would make a minority: the pairs are cut in two halves at random, people are grouped by their support on one
half and compared on the other, and the other way round.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from trl_pafo.audit.votes import Votes, others_votes
from trl_pafo.data.groups import quantile_thresholds
from trl_pafo.errors import DataError
from trl_pafo.metrics import percentile_interval, spearman
from trl_pafo.metrics.accuracy import FloatArray
from trl_pafo.metrics.intervals import honest_ends

MIN_COMMON_VOTES = 100
MIN_VOTES_FOR_SUPPORT = 4


def majority_of_others(votes: Votes) -> FloatArray:
    """Whether the majority of the others is right about each vote: 1, 0, one half for a tie, NaN where nobody else voted."""
    same, total = others_votes(votes)
    return np.where(total > 0, 0.5 * (np.sign(2 * same - total) + 1.0), np.nan)


def noise_ceiling(votes: Votes, *, num_resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """How well the others' majority predicts a label, and within which bounds the best judge that does not see the user lies.

    Args:
        votes ([`Votes`]):
            All votes there are.
        num_resamples (`int`, *optional*, defaults to `1000`):
            Resamples over users of the intervals.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resamples.

    Returns:
        `dict`: `leave_one_out` and `pairwise` (theta above), each with `value`, `low`, `high`; `best_shared_bounds`, `[theta, (1 +
        sqrt(2 theta - 1)) / 2]`; `by_number_of_others`: for 1 and for 3 others drawn from the same votes (those with at least
        three), what their majority predicts; `num_votes`, `num_pairs`, `num_users` of common pairs, `votes_a_pair`.

    Raises:
        DataError: If fewer than 100 votes are on pairs that somebody else judged too.
    """
    same, total = others_votes(votes)
    common = total > 0
    if common.sum() < MIN_COMMON_VOTES:
        raise DataError(
            f"Only {int(common.sum())} of {len(common)} votes are on pairs that another user judged too, so that annotator noise "
            f"cannot be estimated. Let at least {MIN_COMMON_VOTES} votes fall on common pairs."
        )
    ceiling, agreement = majority_of_others(votes)[common], same[common] / total[common]
    users = votes.user[common]
    weights = user_weights(len(votes.users), num_resamples, seed)
    loo, pairwise = (mean_over_users(values, users, weights) for values in (ceiling, agreement))
    theta = pairwise["value"]
    three = total >= 3
    growth = {
        str(m): {"value": float(_majority_of_drawn(same[three], total[three], m).mean()), "num_votes": int(three.sum())}
        for m in (1, 3)
        if three.any()
    }
    return {
        "leave_one_out": loo,
        "pairwise": pairwise,
        "best_shared_bounds": [theta, 0.5 * (1.0 + float(np.sqrt(max(2.0 * theta - 1.0, 0.0))))],
        "by_number_of_others": growth,
        "num_votes": int(common.sum()),
        "num_pairs": len(np.unique(votes.pair[common])),
        "num_users": len(np.unique(users)),
        "votes_a_pair": float(common.sum() / len(np.unique(votes.pair[common]))),
    }


def _majority_of_drawn(same: NDArray[np.int64], total: NDArray[np.int64], number: int) -> FloatArray:
    """Chance that the majority of `number` (odd) others, drawn without replacement, has the label of the vote."""
    return hypergeom.sf(number // 2, total, same, number)


def user_weights(num_users: int, num_resamples: int, seed: int) -> FloatArray:
    """How often each user counts, of shape `(num_resamples + 1, num_users)`; the first row is the data."""
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(num_users, np.full(num_users, 1.0 / num_users), size=num_resamples)
    return np.vstack([np.ones(num_users), draws]).astype(np.float64)


def mean_over_users(values: FloatArray, user: NDArray[np.int64], weights: FloatArray) -> dict[str, float]:
    """Mean over votes with an interval over users: `value`, `low`, `high`; NaN without votes."""
    num_users = weights.shape[1]
    sums, counts = np.bincount(user, values, num_users), np.bincount(user, minlength=num_users).astype(np.float64)
    return with_interval(_ratio(weights @ sums, weights @ counts), int((counts > 0).sum()), (0.0, 1.0))


def with_interval(values: FloatArray, num_users: int, limits: tuple[float, float] | None = None) -> dict[str, float]:
    """The first as `value`, a 95 % percentile interval of the others as `low` and `high`; NaN as [`honest_ends`] says."""
    resamples = values[1:][~np.isnan(values[1:])]
    value = float(values[0])
    if np.isnan(value) or not len(resamples):
        return {"value": value, "low": float("nan"), "high": float("nan")}
    low, high = honest_ends(value, *percentile_interval(resamples[:, None], 0.95), num_users, 0.95, limits)
    return {"value": value, "low": float(low[0]), "high": float(high[0])}


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def half_of_pairs(votes: Votes, seed: int) -> NDArray[np.bool_]:
    """Which votes fall into the first of two random halves of the pairs."""
    return (np.random.default_rng(seed).permutation(votes.num_pairs) % 2 == 0)[votes.pair]


def support_on(votes: Votes, half: NDArray[np.bool_]) -> FloatArray:
    """Leave-one-out support of each user on the votes of `half`; NaN with fewer than 4 common votes there."""
    same, total = others_votes(votes)
    kept = half & (total > 0)
    counts = np.bincount(votes.user[kept], minlength=len(votes.users))
    sums = np.bincount(votes.user[kept], same[kept] / total[kept], minlength=len(votes.users))
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts >= MIN_VOTES_FOR_SUPPORT)


def taste_or_noise(
    votes: Votes,
    minority: float | Mapping[str, bool],
    *,
    num_splits: int = 10,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Whether users of low support share a taste or merely disagree, see the top of this module.

    Args:
        votes ([`Votes`]):
            All votes there are.
        minority (`float` or `Mapping[str, bool]`):
            Share of the users, those with the lowest support on the *other* half of the pairs, that make the minority; or, where
            groups do not come from agreement, whether each user belongs to the minority.
        num_splits (`int`, *optional*, defaults to `10`):
            Random halvings of the pairs that are averaged; one is enough where the minority is given.
        num_resamples (`int`, *optional*, defaults to `1000`):
            Resamples over users of the intervals.
        seed (`int`, *optional*, defaults to `0`):
            Seed of halvings and resamples.

    Returns:
        `dict`, each number with `value`, `low`, `high`: `majority_with_majority`, `minority_with_majority` and
        `minority_with_minority`: mean agreement of the first's votes with those of the second; `shared_taste`: by how much the
        minority agrees more with its own than with the majority, on votes on which both can be seen; `reliability`: Spearman's
        correlation of a user's support on one half with that on the other (`None` where the minority is given).
    """
    given = isinstance(minority, Mapping)
    weights = user_weights(len(votes.users), num_resamples, seed)
    cells: dict[str, list[tuple[FloatArray, FloatArray]]] = {}
    correlations = []
    for split in range(1 if given else num_splits):
        half = half_of_pairs(votes, seed + split)
        if isinstance(minority, Mapping):
            member = np.array([float(minority[u]) if u in minority else np.nan for u in votes.users])
            _collect(cells, votes, member, np.ones(len(half), dtype=bool))
            continue
        supports = [support_on(votes, side) for side in (half, ~half)]
        both = ~np.isnan(supports[0]) & ~np.isnan(supports[1])
        if both.sum() > 2:
            correlations.append(spearman(supports[0][both], supports[1][both], weights[:, both]))
        for support, side in zip(supports, (~half, half), strict=True):
            known = ~np.isnan(support)
            if len(np.unique(support[known])) < 2:
                raise DataError("Too few users judged common pairs to tell taste from noise. Give more votes on the same pairs.")
            threshold = quantile_thresholds(support[known], minority)[0]
            _collect(cells, votes, np.where(known, support < threshold, np.nan), side)
    result: dict[str, Any] = {}
    for name, parts in cells.items():
        sums, counts = (np.sum([part[i] for part in parts], axis=0) for i in (0, 1))
        limits = None if name == "shared_taste" else (0.0, 1.0)
        result[name] = with_interval(_ratio(weights @ sums, weights @ counts), int((counts > 0).sum()), limits)
    result["reliability"] = with_interval(np.mean(correlations, axis=0), len(votes.users)) if correlations else None
    return result


def _collect(
    cells: dict[str, list[tuple[FloatArray, FloatArray]]], votes: Votes, member: FloatArray, side: NDArray[np.bool_]
) -> None:
    """Add each user's sum and number of agreements, on one half of the pairs, with the users of each group."""
    of_vote = member[votes.user]
    shares = {}
    for name, whose in (("majority", 0.0), ("minority", 1.0)):
        same, total = others_votes(votes, of_vote == whose)
        shares[name] = _ratio(same.astype(np.float64), total.astype(np.float64))

    def add(name: str, values: FloatArray, rows: NDArray[np.bool_]) -> None:
        kept = rows & side & ~np.isnan(values)
        sums = np.bincount(votes.user[kept], values[kept], len(votes.users)).astype(np.float64)
        counts = np.bincount(votes.user[kept], minlength=len(votes.users)).astype(np.float64)
        cells.setdefault(name, []).append((sums, counts))

    add("majority_with_majority", shares["majority"], of_vote == 0)
    add("minority_with_majority", shares["majority"], of_vote == 1)
    add("minority_with_minority", shares["minority"], of_vote == 1)
    add("shared_taste", shares["minority"] - shares["majority"], of_vote == 1)
