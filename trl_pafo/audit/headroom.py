"""What a teacher of its own would gain for each group over a shared personalized model, by quick probes. (Not from the paper.)

Three probes ([`~trl_pafo.audit.probes`]) are fitted again and again, each time without a part of the users and a part of the prompts, and
judged on pairs of exactly these: `no_history` and `shared` on everybody's pairs, `teacher` on the pairs of one group. The *headroom* of a
group is the accuracy of its teacher minus that of the shared probe. Positive headroom says that the group's preferences are in
its own pairs, and that a model of everybody's pairs does not find them, although it sees each user's history: this is what PAFO
can distill. Without headroom there is nothing to distill.

The interval is over users ([`~trl_pafo.metrics.compare`]): it says what other users would give, not other training pairs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from tqdm.auto import tqdm

from trl_pafo.audit.probes import (
    WITH_HISTORY,
    PairKernels,
    only_without_history,
    probe_margins,
    validation_losses,
)
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.metrics import compare, pair_correctness
from trl_pafo.metrics.accuracy import FloatArray, IntArray

PROBES = ("no_history", "shared", "teacher")


@dataclass(frozen=True)
class PairFeatures:
    """
    Pairs that are judged, and pairs that only serve as history.

    Attributes:
        differences (`numpy.ndarray` of shape `(num_entries, num_features)`):
            Features of the chosen minus those of the rejected answer. The first `num_pairs` are judged.
        prompt (`numpy.ndarray` of shape `(num_entries,)`):
            Number of each entry's prompt.
        past (`Sequence[Sequence[int]]`):
            For each judged pair, the entries that its history may show, newest first; none with its own prompt.
        user, group (sequences of `num_pairs`):
            Whose pair it is, and the user's group.
    """

    differences: FloatArray
    prompt: IntArray
    past: Sequence[Sequence[int]]
    user: Sequence[Any]
    group: Sequence[Any]


def users_by_group(user: Sequence[Any], group: Sequence[Any]) -> dict[str, int]:
    """Number of users of each group; [`DataError`] where one has too few for probes."""
    users_of = {str(name): number for name, number in sorted(Counter(dict(zip(user, group, strict=True)).values()).items())}
    few = [repr(name) for name, number in users_of.items() if number < 2]
    if few:
        raise DataError(
            f"Probes are judged on users that they were not fitted on, and {', '.join(few)} has one user alone (users by group: "
            f"{users_of}). Give each group two or more, leave the group out, or pass --headroom false."
        )
    return users_of


def probe_headroom(
    pairs: PairFeatures,
    *,
    num_history: int = 3,
    folds: int = 4,
    repeats: int = 3,
    num_resamples: int = 2000,
    seed: int = 0,
    desc: str | None = None,
) -> dict[str, Any]:
    """Cross-validate the probes by users and prompts.

    Args:
        pairs ([`PairFeatures`]):
            The pairs.
        num_history (`int`, *optional*, defaults to `3`):
            Past pairs that a probe sees, the newest; 0 for none. In fitting, a history never shows a prompt that is held out.
        folds (`int`, *optional*, defaults to `4`):
            Parts of the users, and of the prompts; each of the `folds`^2 combinations is judged once. Lowered where a group has fewer
            users, or there are fewer prompts.
        repeats (`int`, *optional*, defaults to `3`):
            How often the parts are drawn anew.
        num_resamples (`int`, *optional*, defaults to `2000`):
            Random subsets of the users for the intervals.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all that is drawn.
        desc (`str`, *optional*):
            Title of the progress bar; no bar without it.

    Returns:
        `dict`: `correct`, from each probe to an array of shape `(num_pairs,)`, its correctness averaged over the repeats; `groups`, from
        each group to `num_users`, `num_pairs`, the accuracy of each probe, `gain` (`value`, `low`, `high`, simultaneous over
        groups) and `gain_of_each_repeat`; `folds`, `repeats`.

    Raises:
        ConfigError: If an option cannot be used.
        DataError: If a group has fewer than two users, or there are fewer than two prompts.
    """
    if folds < 2 or repeats < 1 or num_history < 0:
        raise ConfigError(
            f"`folds` must be at least 2, `repeats` 1 and `num_history` 0, got {folds}, {repeats} and {num_history}."
        )
    num_pairs = len(pairs.past)
    users, user = np.unique(np.asarray(pairs.user), return_inverse=True)
    groups, group = np.unique(np.asarray(pairs.group), return_inverse=True)
    prompts, prompt = np.unique(pairs.prompt, return_inverse=True)
    users_of = users_by_group(pairs.user, pairs.group)
    if len(prompts) < 2:
        raise DataError(
            "Probes are judged on prompts that they were not fitted on, and there is one alone. Give pairs on several."
        )
    folds = min(folds, *users_of.values(), len(prompts))
    products = pairs.differences @ pairs.differences.T
    group_of_user = np.zeros(len(users), dtype=np.int64)
    group_of_user[user] = group

    correct = {name: np.zeros((repeats, num_pairs)) for name in PROBES}
    with tqdm(total=repeats * folds**2, desc=desc, unit="fit", disable=desc is None) as bar:
        for repeat in range(repeats):
            rng = np.random.default_rng((seed, repeat))
            user_fold = _stratified(group_of_user, folds, rng)[user]
            prompt_fold = (rng.permutation(len(prompts)) % folds)[prompt]
            for held_prompts in range(folds):
                # A row that is fitted shows no held-out prompt in its history; a row that is judged may show any of its user's.
                mine = prompt_fold[:num_pairs] == held_prompts
                allowed = prompt_fold != held_prompts
                weights = _history_weights(pairs.past, num_history, mine, allowed)
                kernels = PairKernels(products[:num_pairs, :num_pairs], weights @ (weights @ products).T)
                for held_users in range(folds):
                    judged = np.flatnonzero(mine & (user_fold == held_users))
                    fitted = np.flatnonzero(~mine & (user_fold != held_users))
                    margins = _margins(kernels, fitted, judged, user, prompt[:num_pairs], group, rng)
                    for name, values in margins.items():
                        correct[name][repeat, judged] = pair_correctness(values)
                    bar.update()
    return _summary(correct, pairs, groups, group, users_of, num_resamples, seed) | {"folds": folds, "repeats": repeats}


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
    data: list[float] = []
    columns: list[int] = []
    starts = [0]
    for row, entries in enumerate(past):
        shown = [entry for entry in entries if judged[row] or allowed[entry]][:num_history]
        data += [1.0 / max(len(shown), 1)] * len(shown)
        columns += shown
        starts.append(len(columns))
    return csr_array(
        (np.array(data, dtype=np.float64), np.array(columns, dtype=np.int64), starts), shape=(len(past), len(allowed))
    )


def _margins(
    kernels: PairKernels,
    fitted: IntArray,
    judged: IntArray,
    user: IntArray,
    prompt: IntArray,
    group: IntArray,
    rng: np.random.Generator,
) -> dict[str, FloatArray]:
    losses = validation_losses(kernels, fitted, user, prompt, WITH_HISTORY, rng)
    margins = {
        "no_history": probe_margins(kernels, fitted, judged, only_without_history(losses)),
        "shared": probe_margins(kernels, fitted, judged, losses),
        "teacher": np.zeros(len(judged)),
    }
    for code in np.unique(group[judged]):
        own = fitted[group[fitted] == code]
        losses = validation_losses(kernels, own, user, prompt, WITH_HISTORY, rng)
        rows = group[judged] == code
        margins["teacher"][rows] = probe_margins(kernels, own, judged[rows], losses)
    return margins


def _summary(
    correct: dict[str, FloatArray],
    pairs: PairFeatures,
    groups: Any,
    group: IntArray,
    users_of: dict[str, int],
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    mean = {name: values.mean(axis=0) for name, values in correct.items()}
    verdict = compare(mean["teacher"], mean["shared"], pairs.user, pairs.group, num_resamples=num_resamples, seed=seed)
    summary = {}
    for code, name in enumerate(map(str, groups)):
        rows = group == code
        gains = (correct["teacher"] - correct["shared"])[:, rows].mean(axis=1)
        summary[name] = {
            "num_users": users_of[name],
            "num_pairs": int(rows.sum()),
            **{probe: float(values[rows].mean()) for probe, values in mean.items()},
            "gain": verdict.differences[name],
            "gain_of_each_repeat": [float(gain) for gain in gains],
        }
    return {"correct": mean, "groups": summary}
