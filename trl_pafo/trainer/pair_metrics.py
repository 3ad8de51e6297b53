"""Numbers over pairs, each pair counted once: of an evaluation, and of the training steps since the last log."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray

from trl_pafo.errors import DataError
from trl_pafo.metrics import gini, group_accuracy, pair_correctness, std, theil, user_accuracy
from trl_pafo.metrics.accuracy import group_gap

Columns = dict[str, NDArray[Any]]
"""Arrays by name, one row a pair: `rewards` of shape `(num_pairs, 2)`, chosen and rejected, and others of shape `(num_pairs,)`."""

_OF_STEPS = {"rewards", "num_tokens", "has_label", "group_id", "bradley_terry", "distillation"}
"""Columns of training steps that are not reported by their own name."""
# What the Trainer pads token ids with where it joins batches; never a token.
_NO_TOKEN = -100


class ScoredPairs:
    """Batches that this process has scored. They stay on the device until they are gathered, so that no step waits for it."""

    def __init__(self) -> None:
        self._batches: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return sum(len(batch["rewards"]) for batch in self._batches)

    def add(self, **columns: Any) -> None:
        """Take tensors or lists of a batch, by name; what is `None` is left out."""
        self._batches.append({name: values for name, values in columns.items() if values is not None})

    def total(self, name: str) -> int:
        """Sum of a column of whole numbers on this process."""
        return sum(int(batch[name].sum()) for batch in self._batches)

    def gather(self) -> Columns:
        """The columns of all processes in one exchange, each process's batches one after the other; then start anew."""
        names = dict.fromkeys(name for batch in self._batches for name in batch)
        own = {name: _on_host([batch[name] for batch in self._batches if name in batch]) for name in names}
        self._batches = []
        return _joined(gather_object([own]))


def _on_host(batches: Sequence[Any]) -> NDArray[Any]:
    """The column of all batches; what is on a device is copied once."""
    if not isinstance(batches[0], torch.Tensor):
        return _concatenated([np.asarray(batch) for batch in batches])
    if batches[0].ndim > 2:
        return _concatenated([batch.detach().cpu().numpy() for batch in batches])
    values = torch.cat(list(batches)).detach()
    return (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()  # numpy has no bfloat16


def _joined(parts: Sequence[Columns]) -> Columns:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _concatenated([part[name] for part in parts if name in part]) for name in names}


def _concatenated(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    if arrays[0].ndim > 2:  # token ids, whose batches are of unequal length
        longest = max(array.shape[-1] for array in arrays)
        arrays = [np.pad(a, ((0, 0), (0, 0), (0, longest - a.shape[-1])), constant_values=_NO_TOKEN) for a in arrays]
    return np.concatenate(arrays)


def each_once(pairs: Columns) -> Columns:
    """The pairs in the order of their `pair_number`, each once however many copies there are.

    Raises:
        DataError: If there is no pair at all.
    """
    if "pair_number" not in pairs:
        raise DataError(
            "The evaluation set has no pair. Give it rows; if it has some, all are longer than `max_length`: raise that."
        )
    _, first = np.unique(pairs["pair_number"], return_index=True)
    return {name: values[first] for name, values in pairs.items()}


def pair_losses(pairs: Columns, center_rewards_coefficient: float | None = None) -> NDArray[np.float64]:
    """Bradley-Terry loss of each pair, `-log sigmoid(chosen - rejected - margin)`, of shape `(num_pairs,)`, in float64.

    `margin` is TRL's column, where the pairs have it. The coefficient adds `center_rewards_coefficient * (chosen + rejected)^2`, as
    RewardTrainer does.
    """
    chosen, rejected = pairs["rewards"].astype(np.float64).T
    with np.errstate(invalid="ignore"):  # two infinite rewards have no difference
        losses = np.logaddexp(0.0, pairs.get("margin", np.zeros(len(chosen))) - (chosen - rejected))
        if center_rewards_coefficient is not None:
            losses += center_rewards_coefficient * (chosen + rejected) ** 2
    return losses


def evaluation_metrics(
    pairs: Columns, groups: Iterable[str] = (), center_rewards_coefficient: float | None = None
) -> dict[str, float]:
    """What an evaluation reports, computed in float64 from pairs that are there once each, at least one.

    They have `rewards` of shape `(num_pairs, 2)`, and, of shape `(num_pairs,)`, the names `pair_group` and `pair_user` (`""` for
    none) and optionally `margin`. `groups` are known beside those of the pairs, so that their keys are there every time. Always
    reported are

    - `loss` ([`pair_losses`]), `accuracy`, `margin`: means over the pairs; a tie is half right;
    - `min_reward`, `mean_reward`, `max_reward`: over both responses of all pairs;

    where some pair has a group

    - `accuracy/{group}`, `count/{group}`: over the pairs of the group; NaN and 0 for a known group without a pair;
    - `accuracy_group_mean` (each group counts once), and by fairlearn's names `accuracy_group_min`, `accuracy_difference`
      (best minus worst) and `accuracy_ratio` (worst over best, NaN where all are 0), over the groups that have pairs; the
      latter two are NaN where only one has;

    and where some pair has a user, over users, each with the accuracy on its own pairs,

    - `user_accuracy_mean`, `_min`, `_p10` (10th percentile, linear between users), `_std`, `_gini`, `_theil`.

    Pairs without a group or user count in the other keys. If a reward is NaN, all but the counts is NaN: a pair that cannot be
    judged is neither right nor wrong.
    """
    rewards = pairs["rewards"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        margin = rewards[:, 0] - rewards[:, 1]
    broken = bool(np.isnan(margin).any())
    correct = pair_correctness(np.zeros_like(margin) if broken else margin)
    metrics = {
        "loss": pair_losses(pairs, center_rewards_coefficient).mean(),
        "accuracy": correct.mean(),
        "margin": margin.mean(),
        **_extremes(rewards),
        **_group_metrics(correct, pairs["pair_group"], groups),
        **_user_metrics(correct, pairs["pair_user"]),
    }
    counts = {key: int(value) for key, value in metrics.items() if key.startswith("count/")}
    return {key: float("nan") if broken else float(value) for key, value in metrics.items()} | counts


def _extremes(rewards: NDArray[np.float64]) -> dict[str, float]:
    return {"min_reward": rewards.min(), "mean_reward": rewards.mean(), "max_reward": rewards.max()}


def _group_metrics(correct: NDArray[np.float64], group: NDArray[np.str_], known: Iterable[str]) -> dict[str, float]:
    has_group = group != ""
    if not has_group.any():
        return {}
    accuracy = group_accuracy(correct[has_group], group[has_group])
    metrics: dict[str, float] = {}
    for name in sorted({*known, *accuracy}):
        metrics[f"accuracy/{name}"] = accuracy.get(name, float("nan"))
        metrics[f"count/{name}"] = (group == name).sum()
    gap = group_gap(accuracy)
    return metrics | {
        name: gap[name] for name in ("accuracy_group_mean", "accuracy_group_min", "accuracy_difference", "accuracy_ratio")
    }


def _user_metrics(correct: NDArray[np.float64], user: NDArray[np.str_]) -> dict[str, float]:
    has_user = user != ""
    if not has_user.any():
        return {}
    _, accuracy, _ = user_accuracy(correct[has_user], user[has_user])
    return {
        "user_accuracy_mean": accuracy.mean(),
        "user_accuracy_min": accuracy.min(),
        "user_accuracy_p10": np.percentile(accuracy, 10),
        "user_accuracy_std": std(accuracy),
        "user_accuracy_gini": gini(accuracy),
        "user_accuracy_theil": theil(accuracy),
    }


def training_metrics(pairs: Mapping[str, NDArray[Any]], groups: Sequence[str] = ()) -> dict[str, float]:
    """What a log reports of the training steps since the last one, computed in float64.

    The pairs have `rewards` of shape `(num_pairs, 2)`; optionally, of shape `(num_pairs,)`, `has_label` (false on pairs under the
    history of another user) and `group_id`, the place in `groups`; and, of shape `(num_batches,)`, sums over the pairs of a batch:
    `bradley_terry` and `distillation`, the two losses, and others by any name.

    Reported are `min_reward`, `mean_reward`, `max_reward` over all pairs, `accuracy`, `margin` and `accuracy/{group}` over the
    labeled ones (NaN if there are none; a tie is half right), and, if the sums are given, `bradley_terry_loss` over the labeled
    pairs and `distillation_loss` over all; other sums by their names, over all.
    """
    rewards = pairs["rewards"].astype(np.float64)
    margin = rewards[:, 0] - rewards[:, 1]
    label = pairs.get("has_label", np.ones(len(margin))).astype(bool)
    group_id = pairs.get("group_id", np.full(len(margin), -1))
    correct = (np.sign(margin) + 1) / 2
    metrics = {**_extremes(rewards), "accuracy": _mean(correct[label]), "margin": _mean(margin[label])}
    if "distillation" in pairs:
        with np.errstate(invalid="ignore", divide="ignore"):  # no row may be labeled
            metrics["bradley_terry_loss"] = np.divide(pairs["bradley_terry"].sum(dtype=np.float64), label.sum())
        metrics["distillation_loss"] = pairs["distillation"].sum(dtype=np.float64) / len(margin)
    others = pairs.keys() - _OF_STEPS
    metrics |= {name: pairs[name].sum(dtype=np.float64) / len(margin) for name in sorted(others)}
    metrics |= {f"accuracy/{name}": _mean(correct[label & (group_id == number)]) for number, name in enumerate(groups)}
    return {key: float(value) for key, value in metrics.items()}


def _mean(values: NDArray[np.float64]) -> float:
    return values.mean() if len(values) else float("nan")
