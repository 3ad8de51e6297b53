"""The predicted front: what a student of these teachers could reach, before one is trained. (Not from the paper.)

The mixture of the teachers ([`~trl_pafo.data.group_mixture.GroupMixture`]) is judged for several priors on held-out pairs, beside the
path of personalized Bradley-Terry, which needs no teachers. `tau` 0 takes groups for as frequent as they are in training, 1 for equally
frequent; in between lies what can be had for one group at which price for another.

**Is it worth distilling?** For each tau and group the accuracy of the mixture minus that of the best point of the path has a one-sided
interval of a sign-flip test over users: where both models were alike for each user, all signs of the users' differences would be
equally likely. The intervals hold for all groups and all tau *together*, at 5 % (the largest of the standardized differences is what is
compared with its distribution under random signs), so that choosing a tau on the same pairs does not make a gain of chance. It is worth it
if for some tau a gain is shown for a group, no loss is shown for any, and no estimated loss is above [`TOLERANCE`]. That the best point of the
path is chosen on these pairs, too, favors the path.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import log_expit

from trl_pafo.data.group_posterior import fit_temperature
from trl_pafo.evaluation.reference_path import value_of
from trl_pafo.metrics import pair_correctness, percentile_interval
from trl_pafo.metrics.accuracy import EncodedPairs, FloatArray, encode_pairs
from trl_pafo.metrics.bootstrap import UserCells, bootstrap_cells, group_totals, user_cells
from trl_pafo.metrics.intervals import fewest_users, honest_ends
from trl_pafo.metrics.verdict import decide

TAUS = (0.0, 0.25, 0.5, 0.75, 1.0)
TOLERANCE = 0.01
"""Estimated loss of accuracy of a group that a gain of another may have beside it."""
LEVEL = 0.05
FEWEST_USERS = fewest_users(1 - 2 * LEVEL)
"""With fewer held-out users of a group, nothing is said of it."""
ROUTED = "group-routed teachers"
_FLIPS = 4_999


def predict_front(
    mixture: Mapping[float, FloatArray],
    path: Mapping[float, FloatArray],
    reference: float,
    routed: FloatArray,
    user: Sequence[Any],
    group: Sequence[Any],
    groups: Sequence[str],
    *,
    shared: str = "personalized BT",
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy and log likelihood by group of mixture and path on held-out pairs, and whether distilling is worth it.

    The mixture has for each tau, the path for each multiple of the student's steps, margins of shape `(num_pairs,)`, or
    `(num_draws, num_pairs)` under as many draws of histories, over which means are taken; those of the mixture are divided by
    temperatures, and so are the `routed` ones, of the teacher of each pair's own group. `reference` is the best point of the path,
    `shared` the name of its model. `groups` are all that have a teacher.

    The result is ready for JSON but for NaN: `points`, from each name to `overall`, `accuracy/{group}`, `log_likelihood/{group}`,
    with intervals from a bootstrap over users, and the numbers of users and pairs; `mixture`, a list of `tau`, `name`, and `gains`
    of each group over the reference; `path`, a list of `multiple` and `name`; `reference`, its name; `worth`, whether distilling
    is; `tau`, the one with the highest group-balanced accuracy, of those that show that it is worth it where there are some; and
    `sentence`.
    """
    users = Counter(dict(zip(user, group, strict=True)).values())
    few = ", ".join(f"{name} ({users[name]})" for name in groups if users[name] < FEWEST_USERS)
    too_few = f"Too few held-out users to judge what can be had for {few}; {FEWEST_USERS} are needed."
    if not len(user):
        return {"points": {}, "mixture": [], "path": [], "reference": None, "worth": False, "tau": None, "sentence": too_few}
    pairs = encode_pairs(user, group, len(user))
    name_of_tau = {tau: f"mixture of teachers, tau {tau:g}" for tau in mixture}
    name_of_multiple = {multiple: f"{shared}, x{multiple:g}" if len(path) > 1 else shared for multiple in path}
    margins = {name_of_tau[tau]: values for tau, values in mixture.items()}
    # A temperature for each, so that the log likelihoods compare what is known, not how loudly it is said.
    margins |= {name_of_multiple[multiple]: values / fit_temperature(values) for multiple, values in path.items()}
    points = summaries(margins | {ROUTED: routed}, pairs, num_resamples, seed)
    correct = np.stack([_mean(pair_correctness(values)) for values in mixture.values()])
    value, low, high = simultaneous_differences(correct, _mean(pair_correctness(path[reference])), pairs, seed)
    gains = {
        tau: {name: {"value": v, "low": a, "high": b} for name, v, a, b in zip(pairs.groups, *of_groups, strict=True)}
        for tau, *of_groups in zip(mixture, value.tolist(), low.tolist(), high.tolist(), strict=True)
    }
    verdicts = {tau: decide(of_tau, TOLERANCE) for tau, of_tau in gains.items()}
    better = [tau for tau, (verdict, _) in verdicts.items() if verdict == "improves"]
    best = max(better or mixture, key=lambda tau: value_of("group_balanced", points[name_of_tau[tau]]))
    found = verdicts[best][1].partition(": ")[2]
    basis = (
        f"Accuracy minus that of {name_of_multiple[reference]} on {len(user)} held-out pairs of {len(pairs.users)} users, with one-sided 5 % "
        "intervals for all groups and tau together."
    )
    if few:
        sentence = too_few
    elif better:
        sentence = f"Worth distilling: with tau {best:g} the mixture of teachers is {found}. {basis}"
    else:
        sentence = (
            "Nothing to distill: for no tau is the mixture of teachers shown to be more accurate for one group without a loss for another. "
            f"At its best, with tau {best:g}: {found}. {basis}"
        )
    return {
        "points": points,
        "mixture": [{"tau": tau, "name": name, "gains": gains[tau]} for tau, name in name_of_tau.items()],
        "path": [{"multiple": multiple, "name": name} for multiple, name in name_of_multiple.items()],
        "reference": name_of_multiple[reference],
        "worth": bool(better) and not few,
        "tau": best,
        "sentence": sentence,
    }


def add_student(
    front: dict[str, Any],
    name: str,
    margins: FloatArray,
    user: Sequence[Any],
    group: Sequence[Any],
    num_resamples: int,
    seed: int,
) -> None:
    """Add what a student reached on the same pairs to `points`, and its name to `students`; the arguments are those of
    [`predict_front`].
    """
    calibrated = {name: margins / fit_temperature(margins)}
    front["points"] |= summaries(calibrated, encode_pairs(user, group, len(margins)), num_resamples, seed)
    front.setdefault("students", []).append(name)


def _mean(values: FloatArray) -> FloatArray:
    """Over draws, where there are several."""
    return values.mean(axis=0) if values.ndim == 2 else values


def summaries(named: Mapping[str, FloatArray], pairs: EncodedPairs, num_resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Accuracy overall and by group and mean log likelihood by group, each with a 95 % bootstrap interval over users.

    The margins of each point have the shape `(num_pairs,)` or `(num_draws, num_pairs)`.
    """
    values = [f(margins) for margins in map(np.asarray, named.values()) for f in (pair_correctness, log_expit)]
    cells = user_cells(pairs.user_codes, pairs.group_of_user, np.stack([_mean(rows) for rows in values]))

    def statistics(cells: UserCells, weights: FloatArray) -> FloatArray:
        of_groups = group_totals(cells, weights, np.column_stack([cells.pairs, *cells.sums]))
        totals = np.concatenate([of_groups.sum(axis=1, keepdims=True), of_groups], axis=1)
        counts = totals[:, :, :1]
        means = np.divide(totals[:, :, 1:], counts, out=np.full_like(totals[:, :, 1:], np.nan), where=counts > 0)
        return means.reshape(len(weights), -1)

    num_users = np.bincount(pairs.group_of_user)
    seen = np.repeat([len(pairs.users), *num_users], len(values))
    value, drawn = bootstrap_cells(cells, statistics, num_resamples, seed, fewest_users(0.95))
    low, high = percentile_interval(drawn, 0.95)
    of_accuracy = honest_ends(value, low, high, seen, 0.95, (0.0, 1.0))
    of_likelihood = honest_ends(value, low, high, seen, 0.95)
    is_accuracy = np.arange(len(value)) % 2 == 0
    low, high = (np.where(is_accuracy, *ends) for ends in zip(of_accuracy, of_likelihood, strict=True))
    counts: dict[str, Any] = {"num_users": len(pairs.users), "num_pairs": len(pairs.user_codes)}
    for name, users, number in zip(pairs.groups, num_users.tolist(), np.bincount(pairs.group_codes).tolist(), strict=True):
        counts |= {f"num_users/{name}": users, f"num_pairs/{name}": number}
    numbers = np.stack([value, low, high], axis=-1).reshape(1 + len(num_users), len(named), 2, 3).tolist()
    titles = [["overall", *(f"accuracy/{name}" for name in pairs.groups)]]
    titles.append(["log_likelihood", *(f"log_likelihood/{name}" for name in pairs.groups)])
    return {
        point: {
            title: dict(zip(("value", "low", "high"), numbers[place][i][kind], strict=True))
            for kind, names in enumerate(titles)
            for place, title in enumerate(names)
        }
        | counts
        for i, point in enumerate(named)
    }


def simultaneous_differences(
    correct: FloatArray, reference: FloatArray, pairs: EncodedPairs, seed: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Accuracy of several models minus a reference's for each group, and the ends of intervals, each one-sided at 5 % for all
    together.

    `correct` is in [0, 1], of shape `(num_models, num_pairs)`, the seed that of random signs. The three arrays have the shape
    `(num_models, num_groups)`.
    """
    gained = np.stack([np.bincount(pairs.user_codes, weights=row) for row in correct - reference])
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (_FLIPS, gained.shape[1]))
    members = np.eye(len(pairs.groups))[pairs.group_of_user]
    spread = np.sqrt(gained**2 @ members)
    largest = np.zeros(_FLIPS)
    for place, users in enumerate(members.T > 0):
        standardized = signs[:, users] @ (gained[:, users].T / np.where(spread[:, place] > 0, spread[:, place], 1.0))
        largest = np.maximum(largest, standardized.max(axis=1))
    # With the data themselves as one more draw, at most 5 % lie above.
    threshold = np.sort(largest)[int(np.ceil((1 - LEVEL) * (_FLIPS + 1))) - 1]
    counts = np.bincount(pairs.group_codes)
    value, reach = gained @ members / counts, threshold * spread / counts * (1 + 1e-9)
    return value, np.maximum(value - reach, -1.0), np.minimum(value + reach, 1.0)
