"""Groups of users that no column names, found in their preference pairs before anything is trained. (Not from the paper.)

With the feature difference d of a pair (chosen minus rejected), a user of group g prefers as it did with chance sigmoid(w_g . d). Nobody says
who belongs where, so the pairs of a user have the likelihood

    p(u) = sum_g pi_g prod_{pairs of u} sigmoid(w_g . d).

EM climbs the sum of log p(u), less `penalty` |w_g|^2 / 2 and plus log pi_g for each group: the posterior q_u(g) in turn with the heads
w_g, each fitted to all pairs weighed by their users' q_u(g). It never falls, and ends at the nearest peak, so it starts from several places:
clusters of the users' mean differences, and users cut by how well a head of all of them knows their pairs.

Differences are seen along their first principal directions (which do not depend on what was chosen). Along all of them one head could learn
the training pairs of everybody, and a rare taste would go unseen. Number of groups, of directions, and penalty are those with the highest
likelihood of held-out pairs: prompts are held out in parts, and a user is known by its pairs on other prompts alone. One group more is
taken where it raises that likelihood by more than one standard error, over users.

**A taste of its own.** Whatever the groups are (found here, given, cut from support), a head of a group's own that is better than everybody's
on held-out pairs of this group shows a taste. Whoever merely errs cannot be predicted by any head. Groups that pairs decide are decided anew
from the pairs that are not held out, as otherwise chance alone would make a taste.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment, minimize
from scipy.special import comb, expit, log_expit, logsumexp
from tqdm.auto import tqdm

from trl_pafo.data.groups import ONE_GROUP
from trl_pafo.errors import DataError
from trl_pafo.metrics import compare, pair_correctness
from trl_pafo.metrics.accuracy import FloatArray, IntArray
from trl_pafo.metrics.verdict import number_with_interval

FOLDS = 5
MAX_GROUPS = 4
MAX_PAIRS = 3000
"""Pairs, of users drawn at random, that the groups are found in; all other users are then assigned to them."""
DIRECTIONS, PENALTIES = (8, 16, 32), (0.03, 0.1, 0.3)
_MAX_STEPS, _TOLERANCE = 100, 1e-2  # of EM; the tolerance is in units of the log likelihood of all users
_CLUSTERINGS = 2


class Setting(NamedTuple):
    """How many groups, principal directions, and how strongly heads are held to 0."""

    groups: int
    directions: int
    penalty: float


class Pairs(NamedTuple):
    """Feature differences `(num_pairs, num_features)`; the numbers of users, below `num_users`, and of prompts, `(num_pairs,)`."""

    differences: FloatArray
    user: IntArray
    prompt: IntArray
    num_users: int

    def of(self, rows: NDArray[np.bool_], directions: int) -> "Pairs":
        """Some of the pairs, along the first directions."""
        return Pairs(self.differences[rows, :directions], self.user[rows], self.prompt[rows], self.num_users)


@dataclass(frozen=True)
class Mixture:
    """Heads `(num_groups, num_features)`, and logarithms of the groups' shares `(num_groups,)`."""

    heads: FloatArray
    log_shares: FloatArray

    def log_posterior(self, pairs: Pairs) -> tuple[FloatArray, FloatArray]:
        """Of each user, log q_u(g), of shape `(num_users, num_groups)`, and log p(u), `(num_users,)`; without pairs, the shares and 0."""
        of_pair = log_expit(pairs.differences @ self.heads.T)
        joint = self.log_shares + np.stack([np.bincount(pairs.user, column, pairs.num_users) for column in of_pair.T], axis=1)
        total = logsumexp(joint, axis=1)
        return joint - total[:, None], total


def head_loss(head: FloatArray, differences: FloatArray, weights: FloatArray, penalty: float) -> tuple[float, FloatArray]:
    """Weighted Bradley-Terry loss of a head with its penalty, and the gradient."""
    margins = differences @ head
    loss = -weights @ log_expit(margins) + 0.5 * penalty * head @ head
    return float(loss), penalty * head - differences.T @ (weights * expit(-margins))


def fit_head(differences: FloatArray, weights: FloatArray, penalty: float, start: FloatArray | None = None) -> FloatArray:
    """The head with the least [`head_loss`]."""
    at = np.zeros(differences.shape[1]) if start is None else start
    return minimize(head_loss, at, (differences, weights, penalty), method="L-BFGS-B", jac=True, options={"ftol": 1e-8}).x


def fit_mixture(pairs: Pairs, posterior: FloatArray, penalty: float) -> tuple[Mixture, FloatArray, list[float]]:
    """EM from a posterior `(num_users, num_groups)`.

    Returns:
        The mixture, its posterior, and the penalized log likelihood after each step, which never falls.
    """
    present = np.bincount(pairs.user, minlength=pairs.num_users) > 0
    heads: FloatArray = np.zeros((posterior.shape[1], pairs.differences.shape[1]))
    climbed: list[float] = []
    while True:
        shares = (posterior[present].sum(axis=0) + 1) / (present.sum() + len(heads))
        weights = posterior[pairs.user].T
        heads = np.stack([fit_head(pairs.differences, w, penalty, head) for w, head in zip(weights, heads, strict=True)])
        mixture = Mixture(heads, np.log(shares))
        log_posterior, of_user = mixture.log_posterior(pairs)
        posterior = np.exp(log_posterior)
        climbed.append(float(of_user[present].sum() + mixture.log_shares.sum() - 0.5 * penalty * (heads**2).sum()))
        if len(heads) == 1 or len(climbed) == _MAX_STEPS or (len(climbed) > 1 and climbed[-1] - climbed[-2] < _TOLERANCE):
            return mixture, posterior, climbed


def find_mixture(pairs: Pairs, setting: Setting, seed: int = 0) -> tuple[Mixture, FloatArray]:
    """The mixture with the highest peak, of all starts, and its posterior."""
    fits = [fit_mixture(pairs, start, setting.penalty) for start in _starts(pairs, setting, seed)]
    mixture, posterior, _ = max(fits, key=lambda fit: fit[2][-1])
    return mixture, posterior


def _starts(pairs: Pairs, setting: Setting, seed: int) -> list[FloatArray]:
    if setting.groups == 1:
        return [np.ones((pairs.num_users, 1))]
    counts = np.maximum(np.bincount(pairs.user, minlength=pairs.num_users), 1)
    means = np.zeros((pairs.num_users, pairs.differences.shape[1]))
    np.add.at(means, pairs.user, pairs.differences / counts[pairs.user, None])
    rng = np.random.default_rng(seed)
    labels = [kmeans2(means, setting.groups, minit="++", seed=rng, missing="warn")[1] for _ in range(_CLUSTERINGS)]
    margins = means @ fit_head(pairs.differences, np.ones(len(pairs.user)), setting.penalty)
    # A fifth of the users, those that everybody's head knows worst, in as many parts as there are further groups.
    cuts = np.quantile(margins, 0.2 * np.arange(1, setting.groups) / (setting.groups - 1))
    labels.append(np.searchsorted(cuts, margins))
    return [0.8 * np.eye(setting.groups)[label] + 0.2 / setting.groups for label in labels]


def folds_of(prompt: IntArray, seed: int) -> IntArray:
    """The part in which each pair is held out; pairs on one prompt are in the same."""
    prompts, code = np.unique(prompt, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(prompts)) % FOLDS)[code]


def held_out_log_likelihood(pairs: Pairs, setting: Setting, seed: int = 0) -> FloatArray:
    """Of each pair, `(num_pairs,)`: log sum_g q_u(g) sigmoid(w_g . d), where heads and q_u know no pair of the same part."""
    fold, found = folds_of(pairs.prompt, seed), np.empty(len(pairs.user))
    for held in range(fold.max() + 1):
        rows, rest = pairs.of(fold == held, setting.directions), pairs.of(fold != held, setting.directions)
        mixture, posterior = find_mixture(rest, setting, seed)
        known = np.bincount(rest.user, minlength=rest.num_users) > 0
        log_posterior = np.where(known[:, None], np.log(posterior), mixture.log_shares)
        found[fold == held] = logsumexp(log_posterior[rows.user] + log_expit(rows.differences @ mixture.heads.T), axis=1)
    return found


def choose_setting(
    pairs: Pairs, max_groups: int = MAX_GROUPS, seed: int = 0, desc: str | None = None
) -> tuple[list[Setting], list[dict[str, float]]]:
    """Number of groups by held-out likelihood, see the top of this module.

    Returns:
        The best setting of each number of groups up to the chosen one. And of each number that was tried, up to one more: `groups`, the
        held-out `log_likelihood` a pair, and its `gain` over one group fewer with its `standard_error`.
    """
    widths = sorted({min(width, pairs.differences.shape[1]) for width in DIRECTIONS})
    chosen: list[Setting] = []
    tried: list[dict[str, float]] = []
    before: FloatArray = np.zeros(len(pairs.user))
    with tqdm(desc=desc, unit="fit", disable=desc is None) as bar:
        for groups in range(1, min(max_groups, pairs.num_users) + 1):
            held_out: dict[Setting, FloatArray] = {}
            for setting in (Setting(groups, width, penalty) for width in widths for penalty in PENALTIES):
                held_out[setting] = held_out_log_likelihood(pairs, setting, seed)
                bar.update()
            best = max(held_out, key=lambda setting: float(held_out[setting].mean()))
            gain = held_out[best] - before
            of_user = np.bincount(pairs.user, gain - gain.mean(), pairs.num_users)
            error = float(np.sqrt((of_user**2).sum())) / len(gain)
            known = {"gain": float(gain.mean()), "standard_error": error} if chosen else {}
            tried.append({"groups": groups, "log_likelihood": float(held_out[best].mean()), **known})
            if chosen and gain.mean() <= error:
                break
            chosen.append(best)
            before = held_out[best]
    return chosen, tried


def own_head_gains(
    pairs: Pairs, names: Sequence[str], assign: Callable[[NDArray[np.bool_]], IntArray], setting: Setting, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Held-out accuracy of a head of each group's own minus that of everybody's head.

    Args:
        pairs ([`Pairs`]):
            The pairs.
        names (`Sequence[str]`):
            The groups.
        assign (`Callable`):
            From the pairs that are known, a mask of shape `(num_pairs,)`, to the place of each user's group in `names`; below 0 for none.
        setting ([`Setting`]):
            Directions and penalty of all heads, those that suit everybody's.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the parts and the intervals.

    Returns:
        `dict`, from each group with held-out pairs to `pairs`, `shared`, `own` (accuracies) and `gain` (`value`, `low`, `high`: 95 %
        intervals over users, simultaneous over groups).
    """
    fold = folds_of(pairs.prompt, seed)
    margins, group = np.zeros((2, len(fold))), np.full(len(fold), -1)
    for held in range(fold.max() + 1):
        known = fold != held
        of_user = assign(known)
        rows, rest = pairs.of(~known, setting.directions), pairs.of(known, setting.directions)
        group[~known] = of_user[rows.user]
        margins[0, ~known] = rows.differences @ fit_head(rest.differences, np.ones(len(rest.user)), setting.penalty)
        for code in range(len(names)):
            head = fit_head(rest.differences, (of_user[rest.user] == code).astype(np.float64), setting.penalty)
            mine = ~known & (group == code)
            margins[1, mine] = pairs.differences[mine, : setting.directions] @ head
    shared, own = pair_correctness(margins[0]), pair_correctness(margins[1])
    found: dict[str, dict[str, Any]] = {}
    for code, name in enumerate(names):
        judged = np.flatnonzero(group == code)
        if len(judged):
            confidence = 1 - 0.05 / len(names)
            verdict = compare(own[judged], shared[judged], pairs.user[judged], None, confidence=confidence, seed=seed)
            accuracies = {"shared": float(shared[judged].mean()), "own": float(own[judged].mean())}
            found[name] = {"pairs": len(judged), **accuracies, "gain": verdict.differences["overall"]}
    return found


def adjusted_rand(one: Sequence[Any], other: Sequence[Any]) -> float:
    """How far two divisions of the same users agree (Hubert and Arabie, 1985): 1 for the same, about 0 for chance."""
    together = [comb(np.array(list(Counter(labels).values())), 2).sum() for labels in (zip(one, other, strict=True), one, other)]
    expected, most = together[1] * together[2] / comb(len(one), 2), (together[1] + together[2]) / 2
    return float((together[0] - expected) / (most - expected)) if most > expected else 1.0


@dataclass(frozen=True)
class Tastes:
    """
    Groups that were found in pairs.

    Attributes:
        num_users (`dict[str, int]`):
            How many of the users each group has, the largest first: `"all"`; `"majority"` and `"minority"`; or `"group_1"`, `"group_2"`
            and so on.
        mixture ([`Mixture`]):
            Their heads, on the features that were given, and their shares, in this order.
        tried (`list[dict]`):
            What [`choose_setting`] tried.
        gains (`dict`):
            What [`own_head_gains`] found for these groups; empty where there is one.
        pairs ([`Pairs`]):
            The pairs in which they were found, along the principal directions.
        users (`list[str]`):
            Names of the users of `pairs`.
        rows (`numpy.ndarray` of shape `(num_pairs,)`):
            Places of `pairs` among the pairs that were given.
        shared ([`Setting`]):
            Directions and penalty that suit everybody's head.
    """

    num_users: dict[str, int]
    mixture: Mixture
    tried: list[dict[str, float]]
    gains: dict[str, dict[str, Any]]
    pairs: Pairs
    users: list[str]
    rows: IntArray
    shared: Setting

    @property
    def names(self) -> list[str]:
        return list(self.num_users)

    def summary(self) -> dict[str, Any]:
        """For JSON: `users`, how many each group has, `tried` and `gains`."""
        return {"users": self.num_users, "tried": self.tried, "gains": self.gains}

    def assign(self, differences: FloatArray, user: Sequence[str]) -> dict[str, tuple[str, float]]:
        """The most likely group of each user, and its posterior, from pairs of these users."""
        users, code = np.unique(np.asarray(user), return_inverse=True)
        log_posterior, _ = self.mixture.log_posterior(Pairs(differences, code, code, len(users)))
        places, posterior = log_posterior.argmax(axis=1), np.exp(log_posterior.max(axis=1))
        return {str(name): (self.names[at], q) for name, at, q in zip(users, places, posterior.tolist(), strict=True)}


def find_tastes(
    differences: FloatArray, user: Sequence[str], prompt: Sequence[Any], *, seed: int = 0, desc: str | None = None
) -> Tastes:
    """Find groups of users in their pairs, see the top of this module; the order of the pairs does not matter.

    Args:
        differences (`numpy.ndarray` of shape `(num_pairs, num_features)`):
            Features of the chosen minus those of the rejected response.
        user, prompt (sequences of `num_pairs`):
            Whose pair it is, and what names its prompt.
        seed (`int`, *optional*, defaults to `0`):
            Seed of samples, parts and starts.
        desc (`str`, *optional*):
            Title of the progress bar; no bar without it.

    Raises:
        DataError: If there are fewer than two prompts.
    """
    users, code = np.unique(np.asarray(user), return_inverse=True)
    prompts, prompt_code = np.unique(np.asarray(prompt), return_inverse=True)
    if len(prompts) < 2:
        raise DataError("Groups are judged by pairs on held-out prompts, but there is only one. Give pairs on several prompts.")
    drawn = np.random.default_rng(seed).permutation(len(users))
    taken = drawn[: max(1, int((np.bincount(code)[drawn].cumsum() <= MAX_PAIRS).sum()))]
    rows = np.lexsort((prompt_code, code))
    rows = rows[np.isin(code[rows], taken)]
    names, user_code = np.unique(code[rows], return_inverse=True)
    directions = np.linalg.svd(differences[rows], full_matrices=False)[2][: max(DIRECTIONS)]
    along = differences[rows] @ directions.T
    scale = max(float(np.sqrt((along**2).sum(axis=1).mean())), 1e-12)
    pairs = Pairs(along / scale, user_code, prompt_code[rows], len(names))

    settings, tried = choose_setting(pairs, seed=seed, desc=desc)
    setting = settings[-1]
    everything = np.ones(len(rows), dtype=bool)
    mixture, posterior = find_mixture(pairs.of(everything, setting.directions), setting, seed)
    nearest = posterior.argmax(axis=1)
    sizes = np.bincount(nearest, minlength=setting.groups)
    order = np.argsort(-sizes, kind="stable")[: (sizes > 0).sum()]  # a group that is nobody's likeliest is none

    def assign(known: NDArray[np.bool_]) -> IntArray:
        again = find_mixture(pairs.of(known, setting.directions), setting, seed)[1].argmax(axis=1)
        overlap = np.array([[((again == one) & (nearest == other)).sum() for other in order] for one in range(setting.groups)])
        found = np.full(setting.groups, -1)
        found[linear_sum_assignment(-overlap)[0]] = linear_sum_assignment(-overlap)[1]
        return found[again]

    called = [f"group_{number}" for number in range(1, len(order) + 1)]
    called = {1: [ONE_GROUP], 2: ["majority", "minority"]}.get(len(order), called)
    gains = own_head_gains(pairs, called, assign, settings[0], seed) if len(order) > 1 else {}
    heads = mixture.heads[order] @ directions[: setting.directions] / scale
    whole = Mixture(heads, mixture.log_shares[order])
    number_of = dict(zip(called, sizes[order].tolist(), strict=True))
    return Tastes(number_of, whole, tried, gains, pairs, [str(users[name]) for name in names], rows, settings[0])


def tastes_sentences(found: dict[str, Any]) -> list[str]:
    """What [`find_tastes`] found, from its summary."""
    users, tried = found["users"], found["tried"]
    last = [one for one in tried if len(users) == 1 or one.get("gain", 0.0) > one.get("standard_error", 0.0)][-1]
    change = (
        f"{last['groups']} groups change the log likelihood of held-out pairs by {last['gain']:+.4f} (standard error "
        f"{last['standard_error']:.4f}) a pair over {last['groups'] - 1}"
        if "gain" in last
        else "there are too few users to divide"
    )
    if len(users) == 1:
        return [f"Tastes: no groups. The users of this data have no tastes of their own that their pairs show: {change}."]
    sizes = ", ".join(f"{name} {number:,} users" for name, number in users.items())
    gains = ", ".join(f"{name} {number_with_interval(gain['gain'], True)}" for name, gain in found["gains"].items())
    return [
        f"Tastes: {len(users)} groups found in the pairs alone, {sizes}: {change}. Accuracy that a head of its own gains over everybody's "
        f"on held-out pairs: {gains}."
    ]
