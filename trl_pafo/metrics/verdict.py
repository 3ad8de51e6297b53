"""Is one model better than another for every group? A verdict from paired intervals over users. (Not from the paper.)

**The interval.** The accuracy difference of a group is the mean over its pairs, a ratio of two sums over users. Its percentile
bootstrap is too narrow with few users (with 10 or 15 a group, 95 % intervals missed the truth in up to 11 % of simulated runs).
So it is made of random subsets (Hartigan, 1969): take each user of the group with chance 1/2, compute the difference on this
subset, repeat, and read the ends off the sorted values. This is the same as asking which differences the sign-flip test does not
reject, and needs no standard error, which few users with few differing pairs cannot give. If both models are equally good for each
user, so that swapping their answers changes nothing, the level holds *exactly*: with any number of users and with unequal numbers of
pairs. Where differences between users are skewed it holds approximately (docs/evaluation.md).

The ends are taken at `(1 - confidence) / (2 num_groups)` on each side (Bonferroni), so that all intervals hold at once. The
interval of very few users is [-1, 1]. Where two models never differ it is [0, 0] (given enough users): nothing was seen, yet a rare
difference may have been missed.

The rules of the verdict, and what it says and does not say, are in docs/evaluation.md. If no group truly differs, `improves` is said in at
most `(1 - confidence) / 2` of studies, as far as the level holds.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.metrics.accuracy import FloatArray, check_both, encode_pairs
from trl_pafo.metrics.bootstrap import UserCells, group_totals, subset_weights, user_cells
from trl_pafo.metrics.intervals import check_confidence

_Name = Literal["improves", "degrades", "mixed", "cannot tell", "same"]
OVERALL = "overall"
"""Name of the difference over all pairs, where no groups are known."""


@dataclass(frozen=True)
class Verdict:
    """What a comparison found.

    Attributes:
        verdict (`str`):
            `"improves"`, `"degrades"`, `"mixed"`, `"cannot tell"` or `"same"`.
        differences (`dict[str, dict[str, float]]`):
            For each group, the accuracy minus the reference's, in [-1, 1]: `value`, and `low` and `high` of the
            simultaneous interval. Of all pairs, as `"overall"`, where no groups are known.
        sentence (`str`):
            The same in one sentence.
    """

    verdict: _Name
    differences: dict[str, dict[str, float]]
    sentence: str


def compare(
    correct: ArrayLike,
    reference_correct: ArrayLike,
    user: Iterable[object] | None,
    group: Iterable[object] | None,
    *,
    margins: ArrayLike | None = None,
    reference_margins: ArrayLike | None = None,
    unit: Iterable[object] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
    margin: float = 0.0,
) -> Verdict:
    """Whether a model is a Pareto improvement over a reference, both judged on the same pairs. (Not from the paper.)

    The rules and the method are at the top of this module.

    Args:
        correct (array of shape `(num_pairs,)`):
            Correctness of the model, output of [`pair_correctness`], in [0, 1].
        reference_correct (array of shape `(num_pairs,)`):
            Correctness of the reference on the same pairs in the same order.
        user (`Iterable`, one a pair, or `None`):
            Whose pair it is. Where that is not known, each pair is taken as one person's.
        group (`Iterable`, one a pair, or `None`):
            The group of that user. Where groups are not known, the verdict is on all pairs together.
        margins, reference_margins (arrays of shape `(num_pairs,)`, *optional*):
            The margins from which `correct` and `reference_correct` were made. Without them, a model is never told from
            another one that is right about the same pairs.
        unit (`Iterable`, one a pair, *optional*):
            As in [`fairness_summary`]: what was held out of the pairs of known users, which takes the place of users in all that follows.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence of all groups' intervals together, in (0, 1).
        num_resamples (`int`, *optional*, defaults to `2000`):
            Random subsets of the users.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the subsets.
        margin (`float`, *optional*, defaults to `0.0`):
            Estimated loss of accuracy that a group may have beside another's gain, in [0, 1). A loss that is *shown* is
            never passed over, however small.

    Raises:
        DataError: If columns do not fit or a user is in two groups.
        ConfigError: If an option cannot be used, or there are too few resamples for so many groups.
    """
    ours, theirs = check_both(correct, reference_correct)
    if not 0 <= margin < 1:
        raise ConfigError(f"`margin` is a loss of accuracy, at least 0 and below 1; got {margin}.")
    if (margins is None) != (reference_margins is None):
        raise DataError("Give `margins` and `reference_margins`, or neither: they are compared with each other.")
    pairs = encode_pairs(user, group, len(ours))
    names = pairs.groups or [OVERALL]
    people = f"{len(pairs.users)} {'users' if pairs.has_users else 'pairs, each counted as a different user'}"
    if unit is not None:
        known = len(pairs.users)
        pairs = encode_pairs(unit, group, len(ours))
        people = f"{len(pairs.users)} prompts of {known} known users"
    if margins is not None and np.array_equal(np.asarray(margins), np.asarray(reference_margins)):
        check_confidence(confidence)
        nothing = {name: {"value": 0.0, "low": 0.0, "high": 0.0} for name in names}
        sentence = f"The same: both give the same margin on every pair ({len(ours)} pairs)."
        return Verdict("same", nothing, sentence)
    cells = user_cells(pairs.user_codes, pairs.group_of_user, (ours - theirs)[None])
    value, low, high = _subset_intervals(cells, confidence, num_resamples, seed)
    differences = {
        name: {"value": v, "low": lo, "high": hi}
        for name, v, lo, hi in zip(names, value.tolist(), low.tolist(), high.tolist(), strict=True)
    }
    verdict, found = decide(differences, margin)
    kind = "interval" if len(names) == 1 else "intervals"
    basis = f"{'' if len(names) == 1 else 'simultaneous '}{100 * confidence:g} % {kind} over {people}"
    return Verdict(verdict, differences, f"{found} ({basis}).")


def _tail(confidence: float, num_groups: int) -> float:
    """Share of studies in which the interval of one group may miss the truth on one side."""
    return (1 - confidence) / (2 * num_groups)


def fewest_resamples(num_groups: int, confidence: float = 0.95) -> int:
    """Least `num_resamples` of [`compare`] for so many groups."""
    return math.ceil(1 / _tail(confidence, num_groups)) - 1


def _subset_intervals(
    cells: UserCells, confidence: float, num_resamples: int, seed: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Difference of each group, and the ends of its simultaneous interval, each of shape `(num_groups,)`."""
    check_confidence(confidence)
    num_groups = len(cells.group_starts)
    tail = _tail(confidence, num_groups)
    # The place at which the share of studies that miss the truth on this side is at most `tail`, Monte Carlo included.
    place = math.floor(tail * (num_resamples + 1) + 1e-9)
    if place < 1:
        raise ConfigError(
            f"{num_resamples} resamples are too few for {num_groups} groups at confidence {confidence}; set "
            f"`num_resamples` to at least {fewest_resamples(num_groups, confidence)}."
        )

    def totals(weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        return group_totals(cells, weights, cells.sums[0]), group_totals(cells, weights, cells.pairs)

    chunks = [totals(weights) for weights in subset_weights(cells, num_resamples, seed)]
    gained, counts = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    ratios = np.divide(gained, counts, out=np.zeros_like(gained), where=counts > 0)
    # An empty subset excludes no difference: it counts as the lowest for the lower end, as the highest for the upper.
    low = np.sort(np.where(counts > 0, ratios, -1.0), axis=0)[place - 1]
    high = np.sort(np.where(counts > 0, ratios, 1.0), axis=0)[-place]
    all_gained, all_counts = totals(cells.users[None].astype(np.float64))
    return (all_gained / all_counts)[0], low, high


def decide(differences: dict[str, dict[str, float]], margin: float) -> tuple[_Name, str]:
    """The verdict on the differences of all groups, as in [`Verdict`], and the sentence without its basis; `margin` as in [`compare`]."""
    gained = [name for name, d in differences.items() if d["low"] > 0]
    lost = [name for name, d in differences.items() if d["high"] < 0]
    rest = [name for name in differences if name not in gained and name not in lost]
    perhaps_lost = [name for name in rest if differences[name]["value"] < -margin]
    same = [name for name in rest if name not in perhaps_lost]
    verdict: _Name = "cannot tell"
    if lost:
        verdict = "mixed" if gained else "degrades"
    elif gained and not perhaps_lost:
        verdict = "improves"

    phrases = {
        "more accurate for": gained,
        "less accurate for": lost,
        "perhaps less accurate, but not shown to be, for": perhaps_lost,
        "no loss measured for" if margin == 0 else f"no loss above {format_number(margin)} measured for": same,
    }
    parts = [
        f"{phrase} {', '.join(f'{name} {number_with_interval(differences[name], signed=True)}' for name in names)}"
        for phrase, names in phrases.items()
        if names
    ]
    if list(differences) == [OVERALL]:
        parts = [part.replace(f" for {OVERALL}", f" {OVERALL}", 1) for part in parts]
    start = {
        "cannot tell": "",
        "improves": " on the reference",
        "mixed": " against the reference",
        "degrades": " relative to the reference",
    }
    return verdict, f"{verdict.capitalize()}{start[verdict]}: {'; '.join(parts)}"


def is_known(number: float | None) -> bool:
    """Whether a number is there: neither NaN nor `None`, which is NaN in JSON."""
    return number is not None and number == number


def format_interval(entry: Mapping[str, float | None], signed: bool = False) -> str:
    """`[.890, .931]`, or `[unknown]`."""
    ends = [format_number(entry[end], signed) for end in ("low", "high")]
    return f"[{', '.join(ends)}]" if all(is_known(entry[end]) for end in ("low", "high")) else "[unknown]"


def number_with_interval(entry: Mapping[str, float | None], signed: bool = False) -> str:
    """`.644 [.537, .750]`, `.644 [unknown]`, or `unknown`."""
    value = entry["value"]
    return f"{format_number(value, signed)} {format_interval(entry, signed)}" if is_known(value) else "unknown"


def format_number(value: float | None, signed: bool = False) -> str:
    """Three decimals without the leading zero, as in `.912`, `-.040`, `1.000`; with `signed`, gains as `+.040`; `-` if unknown."""
    if value is None or value != value:
        return "-"
    text = f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 0.9995 else f"{value:.3f}"
    if text in (".000", "-.000"):
        return ".000"
    return f"+{text}" if signed and value > 0 else text
