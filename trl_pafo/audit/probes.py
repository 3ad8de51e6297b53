"""The predicted front by quick probes, before anything is trained. (Not from the paper.)

Probes are fitted again and again, each time without a part of the users and a part of the prompts, and judged on pairs of exactly these:
a *shared* one on everybody's pairs, which sees each user's history, in the place of a personalized model; and a *teacher* of each group, on
the pairs of that group alone and without histories. What the mixture of these teachers gains over the shared probe
([`~trl_pafo.evaluation.front.predict_front`]) is in the groups' own pairs, and a model of everybody's pairs does not find it. The past pairs
of a user, too, are scored by teachers that have seen neither the user nor their prompts.

**A probe** is linear in an answer's features; the weights of the shared one depend on the history: for a pair with the feature difference d
(chosen minus rejected) and a history whose mean difference is h, the margin is a function of (d, h), odd in d, with the kernel

    k((d, h), (d', h')) = <d, d'> * ((1 - b) + b * s(h, h')).

`b` says how much of the weights is the user's own, `s` how histories are compared: by their scalar product (all products of a feature of the
pair and one of the history) or by a Gaussian of their distance. Ridge regression on the target 1 (every margin should be positive) has a
closed form. Kernel and penalty are chosen on users and prompts that were not fitted, `b = 0` among them: a shared probe that is weaker than it
could be would make the teachers look better than they are.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array
from tqdm.auto import tqdm

from trl_pafo.data.group_mixture import GroupMixture
from trl_pafo.errors import DataError
from trl_pafo.evaluation.front import TAUS, predict_front
from trl_pafo.metrics import pair_correctness
from trl_pafo.metrics.accuracy import FloatArray, IntArray

FOLDS, REPEATS = 4, 3
INNER_FOLDS = 3
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

SingleArray = NDArray[np.float32]


class Kernel(NamedTuple):
    """How the weights follow the history: `similarity` of histories (`None`: product; else the width of a Gaussian), share `b`."""

    similarity: float | None
    share: float


KERNELS = (
    Kernel(None, 0.0),
    *(Kernel(None, share) for share in (0.3, 0.6, 0.9)),
    *(Kernel(0.5, share) for share in (0.6, 0.9)),
    *(Kernel(2.0, share) for share in (0.3, 0.6, 0.9)),
)
# Without enough rows to hold any out: no history, and the middle penalty.
_DEFAULT = (KERNELS[0], 0.3)


@dataclass(frozen=True)
class PairFeatures:
    """
    Pairs that are judged, and pairs that only serve as history.

    `differences`, of shape `(num_entries, num_features)`, are features of the chosen minus those of the rejected answer; the first
    `num_pairs` are judged. Each entry has the number of its prompt. `past` has for each judged pair the entries that its history
    may show, newest first; none with its own prompt. `user` and `group` are those of the judged pairs.
    """

    differences: FloatArray
    prompt: IntArray
    past: Sequence[Sequence[int]]
    user: Sequence[Any]
    group: Sequence[Any]


class PairKernels:
    """
    Kernel matrices of pairs with histories, both of shape `(num_pairs, num_pairs)`: scalar products of the pairs' feature
    differences, and of the histories' mean differences, 0 for a pair without a history.
    """

    def __init__(self, products: FloatArray, history_products: FloatArray):
        # Single precision is plenty beside any penalty of the grid, and twice as fast.
        self.products = products.astype(np.float32)
        squares = np.diag(history_products).copy()
        # In units of the mean square, so that the widths and shares mean the same for any features and lengths of histories.
        scale = float(squares[squares > 0].mean()) if (squares > 0).any() else 1.0
        self._histories = (history_products / scale).astype(np.float32)
        self._squares = (squares / scale).astype(np.float32)

    def __call__(self, rows: IntArray, columns: IntArray, kernel: Kernel) -> SingleArray:
        products = self.products[np.ix_(rows, columns)]  # a copy
        if kernel.share == 0:
            return products
        similar = self._histories[np.ix_(rows, columns)]
        if kernel.similarity is not None:
            distances = self._squares[rows][:, None] + self._squares[columns][None] - 2 * similar
            similar = np.exp(np.float32(-kernel.similarity) * np.maximum(distances, 0))
        return products * (np.float32(1 - kernel.share) + np.float32(kernel.share) * similar)


def validation_losses(
    kernels: PairKernels, choices: Sequence[Kernel], fitted: IntArray, user: IntArray, prompt: IntArray, rng: np.random.Generator
) -> dict[tuple[Kernel, float], float]:
    """Squared error of each kernel and penalty on held-out users *and* prompts among the rows `fitted`; empty with too few.

    Each of three inner folds holds out a third of the users and a third of the prompts, fits on pairs of neither and is judged
    on pairs of both.
    """
    folds = []
    for labels in (user[fitted], prompt[fitted]):
        values, codes = np.unique(labels, return_inverse=True)
        folds.append((rng.permutation(len(values)) % INNER_FOLDS)[codes])
    losses: dict[tuple[Kernel, float], float] = defaultdict(float)
    for fold in range(INNER_FOLDS):
        judged = fitted[(folds[0] == fold) & (folds[1] == fold)]
        kept = fitted[(folds[0] != fold) & (folds[1] != fold)]
        if not len(judged) or len(kept) < 2:
            continue
        for kernel in choices:
            inner, outer = kernels(kept, kept, kernel), kernels(judged, kept, kernel)
            for penalty in PENALTIES:
                losses[kernel, penalty] += float(((1.0 - outer @ _ridge(inner, penalty)) ** 2).sum())
    return losses


def best_probe(losses: Mapping[tuple[Kernel, float], float]) -> tuple[Kernel, float]:
    """The kernel and the penalty with the least loss."""
    return min(losses, key=lambda choice: losses[choice]) if losses else _DEFAULT


def probe_margins(kernels: PairKernels, fitted: IntArray, judged: IntArray, kernel: Kernel, penalty: float) -> FloatArray:
    """Margins of the rows `judged` under a probe fitted on the rows `fitted`; 0 without any."""
    if not len(fitted):
        return np.zeros(len(judged))
    margins = kernels(judged, fitted, kernel) @ _ridge(kernels(fitted, fitted, kernel), penalty)
    return margins.astype(np.float64)


def _ridge(kernel: SingleArray, penalty: float) -> SingleArray:
    """Dual weights of ridge regression on the target 1; the penalty is in units of the mean of the diagonal."""
    damped = kernel.copy()
    damped[np.diag_indices_from(damped)] += penalty * max(float(np.trace(kernel)) / len(kernel), 1e-12)
    return cho_solve(cho_factor(damped, lower=True, check_finite=False, overwrite_a=True), np.ones(len(kernel), kernel.dtype))


def check_groups(user: Sequence[Any], group: Sequence[Any]) -> None:
    """Raise [`DataError`] where a group has too few users for probes."""
    users_of = Counter(dict(zip(user, group, strict=True)).values())
    few = [repr(name) for name, number in sorted(users_of.items()) if number < 2]
    if few:
        raise DataError(
            f"Probes are evaluated on users that they were not fitted on, but {', '.join(few)} has only one user (users by group: "
            f"{dict(sorted(users_of.items()))}). Give each group two or more, leave the group out, or pass --probes false."
        )


def probe_front(
    pairs: PairFeatures,
    *,
    num_history: int = 3,
    folds: int = FOLDS,
    repeats: int = REPEATS,
    seed: int = 0,
    desc: str | None = None,
) -> dict[str, Any]:
    """Cross-validate the probes by users and prompts.

    Histories show the newest `num_history` pairs; in fitting never a prompt that is held out. Users and prompts are each divided
    into so many `folds`, of which each of the `folds`^2 combinations is judged once; fewer where a group has fewer users, or there
    are fewer prompts. The parts are drawn anew `repeats` times.

    The result is what [`~trl_pafo.evaluation.front.predict_front`] returns, `folds`, `repeats`, and `correct` of shape
    `(num_pairs,)`, the correctness of the shared probe averaged over the repeats.

    Raises:
        DataError: If a group has fewer than two users, or there are fewer than two prompts.
    """
    num_pairs, num_entries = len(pairs.past), len(pairs.differences)
    check_groups(pairs.user, pairs.group)
    _, user = np.unique(np.asarray(pairs.user), return_inverse=True)
    groups, group, sizes = np.unique(np.asarray(pairs.group), return_inverse=True, return_counts=True)
    prompts, prompt = np.unique(pairs.prompt, return_inverse=True)
    if len(prompts) < 2:
        raise DataError(
            "Probes are evaluated on prompts that they were not fitted on, but there is only one. Give pairs on several prompts."
        )
    group_of_user = np.zeros(user.max() + 1, dtype=np.int64)
    group_of_user[user] = group
    folds = min(folds, *np.bincount(group_of_user).tolist(), len(prompts))
    products = pairs.differences @ pairs.differences.T

    shared = np.zeros((repeats, num_pairs))
    # Of each entry under teachers that have seen neither its prompt nor users of a part, for each part of the users.
    teachers = np.zeros((repeats, folds, num_entries, len(groups)))
    user_fold = np.zeros((repeats, num_pairs), dtype=np.int64)
    with tqdm(total=repeats * folds**2, desc=desc, unit="fit", disable=desc is None) as bar:
        for repeat in range(repeats):
            rng = np.random.default_rng((seed, repeat))
            user_fold[repeat] = _stratified(group_of_user, folds, rng)[user]
            prompt_fold = (rng.permutation(len(prompts)) % folds)[prompt]
            for held_prompts in range(folds):
                # A row that is fitted shows no held-out prompt in its history; a row that is judged may show any of its user's.
                held = np.flatnonzero(prompt_fold == held_prompts)
                mine = prompt_fold[:num_pairs] == held_prompts
                weights = _history_weights(pairs.past, num_history, mine, prompt_fold != held_prompts)
                kernels = PairKernels(products[:num_pairs, :num_pairs], weights @ (weights @ products).T)
                for held_users in range(folds):
                    judged = np.flatnonzero(mine & (user_fold[repeat] == held_users))
                    fitted = np.flatnonzero(~mine & (user_fold[repeat] != held_users))
                    losses = validation_losses(kernels, KERNELS, fitted, user, prompt, rng)
                    shared[repeat, judged] = probe_margins(kernels, fitted, judged, *best_probe(losses))
                    for code in range(len(groups)):
                        own = fitted[group[fitted] == code]
                        _, penalty = best_probe(validation_losses(kernels, KERNELS[:1], own, user, prompt, rng))
                        dual = _ridge(kernels(own, own, KERNELS[0]), penalty) if len(own) else np.zeros(0)
                        teachers[repeat, held_users, held, code] = products[np.ix_(held, own)] @ dual
                    bar.update()

    number = np.arange(num_entries * folds * repeats).reshape(repeats, folds, num_entries)
    place = number[np.arange(repeats)[:, None], user_fold, np.arange(num_pairs)]
    starts: list[int] = (place - np.arange(num_pairs)).ravel().tolist()
    shown = [entries[:num_history] for entries in pairs.past] * repeats
    past = [[start + entry for entry in entries] for start, entries in zip(starts, shown, strict=True)]
    entries = teachers.reshape(-1, len(groups))
    margins = entries[place.ravel()]
    names, of_row = groups.tolist(), np.tile(group, repeats)
    shares = dict(zip(names, (sizes / num_pairs).tolist(), strict=True))
    mixture = GroupMixture.fit(shares, margins, [names[code] for code in of_row], entries, past)
    by_tau = {tau: mixture.margins(margins, entries, past, tau).reshape(repeats, num_pairs) for tau in TAUS}
    routed = (margins / mixture.temperature)[np.arange(len(margins)), of_row].reshape(repeats, num_pairs)
    found = predict_front(by_tau, {1.0: shared}, 1.0, routed, pairs.user, pairs.group, names, shared="shared probe", seed=seed)
    return found | {"folds": folds, "repeats": repeats, "correct": pair_correctness(shared).mean(axis=0)}


def _stratified(group_of_user: IntArray, folds: int, rng: np.random.Generator) -> IntArray:
    """Fold of each user; each fold has a like share of each group."""
    fold = np.empty(len(group_of_user), dtype=np.int64)
    for code in np.unique(group_of_user):
        members = rng.permutation(np.flatnonzero(group_of_user == code))
        fold[members] = (np.arange(len(members)) + rng.integers(folds)) % folds
    return fold


def _history_weights(
    past: Sequence[Sequence[int]], num_history: int, judged: NDArray[np.bool_], allowed: NDArray[np.bool_]
) -> csr_array:
    """Rows that average the newest entries of each history, of shape `(num_pairs, num_entries)`; empty rows without one.

    Rows that are not judged show `allowed` entries only.
    """
    shown = [[entry for entry in entries if judged[row] or allowed[entry]][:num_history] for row, entries in enumerate(past)]
    lengths = np.array([len(entries) for entries in shown])
    columns = np.concatenate([np.array(entries, dtype=np.int64) for entries in shown])
    data = np.repeat(1.0 / np.maximum(lengths, 1), lengths)
    return csr_array((data, columns, np.r_[0, lengths.cumsum()]), shape=(len(past), len(allowed)))
