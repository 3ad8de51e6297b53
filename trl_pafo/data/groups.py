"""How much support a user's preferences have in the training population, and the groups that follow from it.

The *preference support rate* s(u) lies in [0, 1]. Three estimators for three kinds of data share one form, a number for
each user; [`assign_groups`] cuts the users at thresholds of it. That a reward model's quality varies with the support
rate is the finding of PAFO (arXiv 2606.07988); the estimators here are ours, since the paper's body gives no formula
that we could read.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray

from trl_pafo.data.labels import normalize_labels
from trl_pafo.errors import ConfigError, DataError

FloatArray = NDArray[np.float64]

ONE_GROUP = "all"
"""Name of the group of everybody, where no groups are known."""

# Users with the same support stay together, so that the order of a sum must not tell them apart.
_DIGITS = 12


def support_rate_by_type(types: Sequence[Hashable], population: Sequence[Hashable] | None = None) -> FloatArray:
    """Support rates of users who each hold one type: the share of the training population that holds the same type.

    Args:
        types (`Sequence[Hashable]`):
            Type of each user.
        population (`Sequence[Hashable]`, *optional*):
            Types of the training users. Without it, `types` are the training users themselves. A user counts towards
            the share of its own type.

    Returns:
        `numpy.ndarray`: Of shape `(num_users,)`, in [0, 1]; 0 for a type that no training user holds.

    Raises:
        DataError: If the population is empty, or a type is missing.
    """
    types = normalize_labels(types, "types", "The users")
    held = types if population is None else normalize_labels(population, "population", "The training users")
    if not held:
        raise DataError("No training user is given, so no type has a share; pass the type of each training user.")
    counts = Counter(held)
    return np.array([counts[name] / len(held) for name in types], dtype=np.float64)


def support_rate_by_agreement(user: Iterable[object], pair: Iterable[object], label: ArrayLike) -> dict[str, float]:
    """Support rates of users who judged common pairs: the mean leave-one-out agreement with the others.

    For each pair that a user judged, the agreement is the share of the *other* users' labels on it that are the same;
    the support rate is the mean over the user's pairs, each with the same weight however many judged it. Pairs that
    nobody else judged do not count. Whoever labels a pair more than once is left out of the others with all of these
    labels.

    Args:
        user (`Iterable`, one a vote):
            User of each vote.
        pair (`Iterable`, one a vote):
            Pair of each vote. The two responses of a pair need one fixed order over all votes.
        label (`ArrayLike`):
            +1 if the first response of the pair was preferred, -1 if the second was. Of shape `(num_votes,)`. Undecided
            votes are to be left out before.

    Returns:
        `dict`: From each user, in sorted order, to its support rate in [0, 1]; NaN for users with no shared pair.

    Raises:
        DataError: If the three arrays differ in length, a user or pair is missing, or a label is neither +1 nor -1.
    """
    columns = {"user": normalize_labels(user, "user", "The votes"), "pair": normalize_labels(pair, "pair", "The votes")}
    labels = np.asarray(label)
    if labels.ndim != 1 or len({len(labels), *map(len, columns.values())}) > 1:
        numbers = ", ".join(f"{len(values)} of `{name}`" for name, values in columns.items())
        raise DataError(
            f"`user`, `pair` and `label` must be flat and of one length, got {numbers}, labels of shape {labels.shape}."
        )
    if not np.isin(labels, (-1, 1)).all():
        raise DataError("Each `label` must be +1 (first response preferred) or -1 (second); leave undecided votes out.")
    votes = pd.DataFrame({**columns, "label": labels})

    def of_others(*by: str) -> pd.Series:
        size, of_own = (votes.groupby(names)["label"].transform("size") for names in ([*by], [*by, "user"]))
        return size - of_own

    votes["agreement"] = of_others("pair", "label") / of_others("pair")  # NaN for 0 of 0, which a mean leaves out
    rates = votes.groupby("user")["agreement"].mean()
    return rates.round(_DIGITS).to_dict()


def support_rate_by_weights(weights: ArrayLike, probe_features: ArrayLike, population: ArrayLike | None = None) -> FloatArray:
    """Support rates of users whose reward weights are known: how many others prefer the same response of a probe pair.

    User u prefers the first response of probe pair p if the margin `weights[u] @ probe_features[p]` is above 0. The
    support rate is the share of the population with a margin of the same sign, averaged over the probe pairs. A margin
    of exactly 0 is no preference: such a probe does not count for this user, and such a member does not count on this
    probe.

    Args:
        weights (`ArrayLike`):
            Reward weights, of shape `(num_users, d)`.
        probe_features (`ArrayLike`):
            Differences between the reward vectors of the two responses of each probe pair, of shape `(num_probes, d)`.
        population (`ArrayLike`, *optional*):
            Weights of the training users, of shape `(num_train_users, d)`, for users who are not among them. Without
            it, `weights` are the training users themselves, and each is compared with all *but itself*.

    Returns:
        `numpy.ndarray`: Of shape `(num_users,)`, in [0, 1]; NaN for a user without a probe that counts.

    Raises:
        DataError: If the shapes do not fit together or a value is not finite.
    """
    own = np.asarray(weights, dtype=np.float64)
    probes = np.asarray(probe_features, dtype=np.float64)
    others = own if population is None else np.asarray(population, dtype=np.float64)
    for name, array in (("weights", own), ("probe_features", probes), ("population", others)):
        if array.ndim != 2 or array.shape[1] != own.shape[-1] or not np.isfinite(array).all():
            width = own.shape[-1] if own.ndim == 2 else "d"
            raise DataError(f"`{name}` must be finite and of shape (rows, {width}), got the shape {array.shape}.")
    itself = 1 if population is None else 0
    positive, negative = ((sign * others @ probes.T > 0).sum(axis=0) - itself for sign in (1, -1))
    margins = own @ probes.T
    num_others = positive + negative + itself
    counts = (margins != 0) & (num_others > 0)
    share = np.divide(np.where(margins > 0, positive, negative), num_others, out=np.full(margins.shape, np.nan), where=counts)
    return np.round(pd.DataFrame(share).mean(axis=1).to_numpy(), _DIGITS)


def quantile_thresholds(support: ArrayLike, quantile: float | Sequence[float]) -> FloatArray:
    """Thresholds of the support rate that leave about the given shares of the users below them.

    Users with the same support rate always stay together. So a cut can only fall between two different rates: the one
    is taken whose share of users below is nearest to the quantile, and of two equally near ones the lower. No group is
    ever empty. With typed users this means that a minority of 10 % is found by any quantile near 0.1.

    Args:
        support (`ArrayLike`):
            Support rate of each training user, of shape `(num_users,)`.
        quantile (`float` or `Sequence[float]`):
            Share of users below each threshold, in (0, 1), ascending.

    Returns:
        `numpy.ndarray`: Of shape `(num_quantiles,)`: the lowest rate that is not below the cut. Use it as `threshold`
        in [`assign_groups`], also for users who were not there when it was found.

    Raises:
        ConfigError: If a quantile lies outside (0, 1) or they do not ascend.
        DataError: If there are fewer different support rates than groups, or one is NaN.
    """
    rates = _check_support(support)
    quantiles = np.atleast_1d(np.asarray(quantile, dtype=np.float64))
    if not len(quantiles) or not ((quantiles > 0) & (quantiles < 1)).all() or not (np.diff(quantiles) > 0).all():
        raise ConfigError(f"`quantile` must lie above 0 and below 1, and ascend where there are several; got {quantile}.")
    values, first = np.unique(np.sort(rates), return_index=True)
    below = first[1:] / max(len(rates), 1)
    # Rounding keeps two cuts that are equally near from being told apart by the last digit.
    cuts = [int(np.argmin(np.round(np.abs(below - q), 12))) for q in quantiles] if len(below) else []
    if len(set(cuts)) < len(quantiles):
        raise DataError(
            f"{len(quantiles) + 1} groups cannot be cut at the quantiles {quantiles.tolist()}: the {len(rates)} users "
            f"have {len(values)} different support rates, and users with the same rate stay together. Ask for fewer "
            "groups, move the quantiles apart, or give a `group` column."
        )
    return values[1:][cuts]


def assign_groups(
    support: ArrayLike,
    *,
    threshold: float | Sequence[float] | None = None,
    quantile: float | Sequence[float] | None = None,
    names: Sequence[str] = ("majority", "minority"),
) -> NDArray[np.str_]:
    """Group of each user by its support rate.

    Args:
        support (`ArrayLike`):
            Support rate of each user, of shape `(num_users,)`.
        threshold (`float` or `Sequence[float]`, *optional*):
            A user whose support rate is below it belongs to the lower group. Several, ascending, make several groups.
        quantile (`float` or `Sequence[float]`, *optional*):
            Share of the users that should be below the threshold, in (0, 1); see [`quantile_thresholds`] for ties.
            Exactly one of `threshold` and `quantile` must be given.
        names (`Sequence[str]`, *optional*, defaults to `("majority", "minority")`):
            Names of the groups, from the one with the highest support to the one with the lowest; one more than there
            are thresholds.

    Returns:
        `numpy.ndarray`: Names, of shape `(num_users,)`.

    Raises:
        ConfigError: If not exactly one of `threshold` and `quantile` is given, if they do not ascend, or if the number of names
            does not fit.
        DataError: If a support rate is NaN, or users cannot be told apart at the quantiles.
    """
    if (threshold is None) == (quantile is None):
        raise ConfigError("Give exactly one of `threshold` and `quantile` to say where the groups are cut.")
    rates = _check_support(support)
    if quantile is not None:
        thresholds = quantile_thresholds(rates, quantile)
    else:
        thresholds = np.atleast_1d(np.asarray(threshold, dtype=np.float64))
        if not len(thresholds) or not np.isfinite(thresholds).all() or (np.diff(thresholds) <= 0).any():
            raise ConfigError(f"`threshold` must be finite, and ascend where there are several; got {threshold}.")
    if len(names) != len(thresholds) + 1 or len(set(names)) != len(names):
        raise ConfigError(
            f"{len(thresholds)} cut(s) make {len(thresholds) + 1} groups, so `names` must hold as many different "
            f"names; got {list(names)}."
        )
    ascending = np.array(list(names)[::-1], dtype=np.str_)
    return ascending[np.searchsorted(thresholds, rates, side="right")]


def count_by_group(dataset: Dataset) -> Counter[str]:
    """Number of rows of each group; all under `"all"` without a `group` column."""
    if "group" not in dataset.column_names:
        return Counter({ONE_GROUP: len(dataset)})
    return Counter("no group" if group is None else group for group in dataset["group"][:])


def by_group(dataset: Dataset, users: Collection[str]) -> str:
    """`: majority 2, minority 1`, the number of these users in each group; nothing where no groups are known."""
    if "group" not in dataset.column_names:
        return ""
    group_of = dict(zip(dataset["user"][:], dataset["group"][:], strict=True))
    return ": " + ", ".join(f"{group} {number}" for group, number in sorted(Counter(group_of[user] for user in users).items()))


def group_names(dataset: Any) -> set[str]:
    """The groups of a dataset; none where it is a stream, whose rows are not known, or has no column `group`."""
    if not isinstance(dataset, Dataset) or "group" not in dataset.column_names:
        return set()
    return set(dataset.unique("group")) - {None}


def largest_and_smallest(group: Sequence[str], user: Sequence[str] | None) -> tuple[str, str]:
    """The groups with the most and the fewest users, or pairs where users are not known; of equal ones by name."""
    counts = Counter(group if user is None else dict(zip(user, group, strict=True)).values())
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    return ordered[0], ordered[-1]


def _check_support(support: ArrayLike) -> FloatArray:
    rates = np.asarray(support, dtype=np.float64)
    if rates.ndim != 1:
        raise DataError(f"`support` must hold one number for each user, got an array of shape {rates.shape}.")
    missing = int(np.isnan(rates).sum())
    if missing:
        raise DataError(
            f"{missing} of {len(rates)} users have no support rate (NaN), such as users who share no pair with others: "
            "leave them out before the groups are assigned."
        )
    return rates
