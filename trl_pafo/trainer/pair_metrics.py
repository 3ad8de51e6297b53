"""Numbers over pairs, each pair counted once: of an evaluation, and of the training steps since the last log.

Nothing here knows the Trainer: rows and a way to gather go in, a flat dictionary of numbers comes out.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trl_pafo.errors import DataError
from trl_pafo.metrics import gini, group_accuracy, pair_correctness, std, theil, user_accuracy

# What the Trainer pads token ids with where it joins batches; never a token.
_NO_TOKEN = -100


class ScoredPairs(NamedTuple):
    """Pairs with their rewards, one row a pair.

    `number`, of shape `(num_pairs,)`, is the place of the pair in its dataset and tells copies of a pair apart from other
    pairs. `rewards` has shape `(num_pairs, 2)`, chosen and rejected; `offset`, of shape `(num_pairs,)`, is what the margin
    must exceed (TRL's `margin` column, 0 without). `group` and `user` are names, `""` where a row has none. `predictions`
    of shape `(num_pairs, ...)` and `inputs` of shape `(num_pairs, 2, num_tokens)` are what `compute_metrics` asked for.
    """

    number: NDArray[np.int64]
    rewards: NDArray[np.float32]
    offset: NDArray[np.float64]
    group: NDArray[np.str_]
    user: NDArray[np.str_]
    predictions: NDArray[Any] | None = None
    inputs: NDArray[np.int64] | None = None

    def take(self, rows: NDArray[Any]) -> "ScoredPairs":
        """Some of the pairs, by place or by mask."""
        return ScoredPairs(*(None if value is None else value[rows] for value in self))  # type: ignore[arg-type]


def merge_pairs(parts: Iterable[ScoredPairs]) -> ScoredPairs:
    """The pairs of all batches or processes in the order of their dataset, each once however many copies there are.

    Raises:
        DataError: If there is no pair at all.
    """
    parts = [part for part in parts if len(part.number)]
    if not parts:
        raise DataError(
            "The evaluation set has no pair. Give it rows; if it has some, all are longer than `max_length`: raise that."
        )
    longest = max(0 if part.inputs is None else part.inputs.shape[-1] for part in parts)
    columns = zip(*(part._replace(inputs=_widen(part.inputs, longest)) for part in parts), strict=True)
    pairs = ScoredPairs(*(None if column[0] is None else np.concatenate(column) for column in columns))  # type: ignore[arg-type]
    _, first = np.unique(pairs.number, return_index=True)
    return pairs.take(first)


def _widen(inputs: NDArray[np.int64] | None, num_tokens: int) -> NDArray[np.int64] | None:
    if inputs is None:
        return None
    return np.pad(inputs, ((0, 0), (0, 0), (0, num_tokens - inputs.shape[-1])), constant_values=_NO_TOKEN)


class PairCollector:
    """Batches that one process has scored. They stay on the device until they are asked for, so that no step waits.

    Args:
        keeps_inputs (`bool`, *optional*, defaults to `False`):
            Whether whoever adds a batch should add its token ids.
    """

    def __init__(self, keeps_inputs: bool = False) -> None:
        self.keeps_inputs = keeps_inputs
        self._on_device: list[tuple[Any, ...]] = []
        self._on_host: list[ScoredPairs] = []
        self._seen: set[int] = set()
        self.num_pairs = 0
        self.num_batches = 0

    def add(
        self,
        number: Sequence[int],
        rewards: torch.Tensor,
        offset: torch.Tensor | None = None,
        group: Sequence[str] | None = None,
        user: Sequence[str] | None = None,
        predictions: torch.Tensor | None = None,
        inputs: torch.Tensor | None = None,
    ) -> None:
        """Take a batch, shapes as in [`ScoredPairs`]."""
        self._on_device.append((number, rewards, offset, group, user, predictions, inputs))
        self.num_pairs += len(number)
        self.num_batches += 1

    def to_host(self) -> list[ScoredPairs]:
        """All batches, moved to the host."""
        self._on_host += [_on_host(*batch) for batch in self._on_device]
        self._on_device.clear()
        return self._on_host

    def unseen(self, pairs: ScoredPairs) -> ScoredPairs:
        """Those of some pairs of all processes that no earlier call has returned."""
        fresh = np.array([number not in self._seen for number in pairs.number.tolist()], dtype=bool)
        self._seen.update(pairs.number.tolist())
        return pairs.take(fresh)


def _on_host(number: Any, rewards: Any, offset: Any, group: Any, user: Any, predictions: Any, inputs: Any) -> ScoredPairs:
    none = [""] * len(number)
    return ScoredPairs(
        np.asarray(number, dtype=np.int64),
        rewards.float().cpu().numpy(),
        np.zeros(len(number)) if offset is None else offset.double().cpu().numpy(),
        np.asarray(group or none, dtype=np.str_),
        np.asarray(user or none, dtype=np.str_),
        None if predictions is None else _floats(predictions).cpu().numpy(),
        None if inputs is None else inputs.cpu().numpy(),
    )


def _floats(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # numpy has no bfloat16


def pair_losses(pairs: ScoredPairs, center_rewards_coefficient: float | None = None) -> NDArray[np.float64]:
    """Bradley-Terry loss of each pair, `-log sigmoid(margin - offset)`, of shape `(num_pairs,)`, in float64.

    Args:
        pairs ([`ScoredPairs`]):
            Pairs.
        center_rewards_coefficient (`float`, *optional*):
            Adds `center_rewards_coefficient * (chosen + rejected)^2`, as RewardTrainer does.
    """
    chosen, rejected = pairs.rewards.astype(np.float64).T
    with np.errstate(invalid="ignore"):  # two infinite rewards have no difference
        losses = np.logaddexp(0.0, pairs.offset - (chosen - rejected))
        if center_rewards_coefficient is not None:
            losses += center_rewards_coefficient * (chosen + rejected) ** 2
    return losses


def evaluation_metrics(
    pairs: ScoredPairs, groups: Iterable[str] = (), center_rewards_coefficient: float | None = None
) -> dict[str, float]:
    """What an evaluation reports, computed in float64 from one row a pair.

    Args:
        pairs ([`ScoredPairs`]):
            At least one pair, each once ([`merge_pairs`]).
        groups (`Iterable[str]`, *optional*):
            Groups that are known beside those of the pairs, so that their keys are there every time.
        center_rewards_coefficient (`float`, *optional*):
            As in [`pair_losses`].

    Returns:
        `dict`. Always

        - `loss`, `accuracy`, `margin`: means over the pairs; a tie is half right;
        - `min_reward`, `mean_reward`, `max_reward`: over both responses of all pairs;

        where some pair has a group

        - `accuracy/{group}`, `count/{group}`: over the pairs of the group; NaN and 0 for a known group without a pair;
        - `accuracy_group_min`, `accuracy_difference` (best minus worst), `accuracy_ratio` (worst over best, NaN where all
          are 0), fairlearn's names, over the groups that have pairs; the latter two are NaN where only one has;

        and where some pair has a user, over users, each with the accuracy on its own pairs,

        - `user_accuracy_mean`, `_min`, `_p10` (10th percentile, linear between users), `_std`, `_gini`, `_theil`.

        Pairs without a group or user count in the other keys. If a reward is NaN, all but the counts is NaN: a pair that
        cannot be judged is neither right nor wrong.
    """
    rewards = pairs.rewards.astype(np.float64)
    with np.errstate(invalid="ignore"):
        margin = rewards[:, 0] - rewards[:, 1]
    broken = bool(np.isnan(margin).any())
    correct = pair_correctness(np.zeros_like(margin) if broken else margin)
    metrics: dict[str, float] = {
        "loss": pair_losses(pairs, center_rewards_coefficient).mean(),
        "accuracy": correct.mean(),
        "margin": margin.mean(),
        "min_reward": rewards.min(),
        "mean_reward": rewards.mean(),
        "max_reward": rewards.max(),
    }
    metrics |= _group_metrics(correct, pairs.group, groups)
    metrics |= _user_metrics(correct, pairs.user)
    counts = {key: int(value) for key, value in metrics.items() if key.startswith("count/")}
    return {key: float("nan") if broken else float(value) for key, value in metrics.items()} | counts


def _group_metrics(correct: NDArray[np.float64], group: NDArray[np.str_], known: Iterable[str]) -> dict[str, float]:
    has_group = group != ""
    if not has_group.any():
        return {}
    found, counts = np.unique(group[has_group], return_counts=True)
    count = dict(zip(found.tolist(), counts.tolist(), strict=True))
    accuracy = group_accuracy(correct[has_group], group[has_group])
    worst, best = min(accuracy.values()), max(accuracy.values())
    metrics: dict[str, float] = {}
    for name in sorted({*known, *count}):
        metrics[f"accuracy/{name}"] = accuracy.get(name, float("nan"))
        metrics[f"count/{name}"] = count.get(name, 0)
    return metrics | {
        "accuracy_group_min": worst,
        # One group has no gap to others.
        "accuracy_difference": best - worst if len(accuracy) > 1 else float("nan"),
        "accuracy_ratio": worst / best if len(accuracy) > 1 and best else float("nan"),
    }


def _user_metrics(correct: NDArray[np.float64], user: NDArray[np.str_]) -> dict[str, float]:
    has_user = user != ""
    if not has_user.any():
        return {}
    _, accuracy, _ = user_accuracy(correct[has_user], user[has_user])
    values = {
        "mean": accuracy.mean(),
        "min": accuracy.min(),
        "p10": np.percentile(accuracy, 10),
        "std": std(accuracy),
        "gini": gini(accuracy),
        "theil": theil(accuracy),
    }
    return {f"user_accuracy_{name}": float(value) for name, value in values.items()}


class PairSums:
    """Sums over the pairs of training steps, kept on the device: a step neither communicates nor waits for one.

    Args:
        groups (`Sequence[str]`, *optional*):
            Groups in the order of their ids.
    """

    # Rows of the vector of sums; then two a group (labeled rows, and how many of them are right), then the extremes.
    _NAMES = ("rows", "labeled", "correct", "margin", "reward", "tokens", "bradley_terry", "distillation", "weight")

    def __init__(self, groups: Sequence[str] = ()):
        self.groups = list(groups)
        self._sums: torch.Tensor | None = None
        self._extremes: torch.Tensor | None = None
        self._distills = False

    def __bool__(self) -> bool:
        return self._sums is not None

    @torch.no_grad()
    def add(
        self,
        chosen: torch.Tensor,
        rejected: torch.Tensor,
        num_tokens: torch.Tensor,
        has_label: torch.Tensor | None = None,
        group_id: torch.Tensor | None = None,
        loss_parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            chosen, rejected (`torch.Tensor` of shape `(num_rows,)`):
                Rewards.
            num_tokens (`torch.Tensor`, a scalar):
                Tokens of the batch without padding.
            has_label (`torch.Tensor` of shape `(num_rows,)`, *optional*):
                False on counterfactual rows, which nobody labeled; all true if left out.
            group_id (`torch.Tensor` of shape `(num_rows,)`, *optional*):
                Places in `groups`, -1 for none.
            loss_parts (three `torch.Tensor`, scalars, *optional*):
                Bradley-Terry loss, distillation loss and weight of the distillation, means over the rows
                ([`~trl_pafo.trainer.losses.PAFOLoss`]).
        """
        # Counts of tokens outgrow float32; the devices that lack float64 have to do with it.
        dtype = torch.float64 if chosen.device.type in ("cpu", "cuda") else torch.float32
        chosen, rejected = chosen.to(dtype), rejected.to(dtype)
        margin = chosen - rejected
        label = torch.ones_like(margin) if has_label is None else has_label.to(dtype)
        correct = label * (torch.sign(margin) + 1) / 2
        rows = torch.ones_like(margin).sum()
        self._distills = loss_parts is not None
        parts = [part.to(dtype) * rows for part in loss_parts or (rows * 0,) * 3]
        sums = [rows, label.sum(), correct.sum(), (label * margin).sum(), (chosen + rejected).sum()]
        vector = torch.stack([*sums, num_tokens.to(rows), *parts])
        if self.groups:
            ids = torch.full_like(margin, -1) if group_id is None else group_id
            of_group = (ids[:, None] == torch.arange(len(self.groups), device=ids.device)).to(dtype)
            vector = torch.cat([vector, label @ of_group, correct @ of_group])
        rewards = torch.cat([chosen, rejected])
        extremes = torch.stack([-rewards.min(), rewards.max()])
        if self._sums is None or self._extremes is None:
            self._sums, self._extremes = vector, extremes
        else:
            self._sums += vector
            self._extremes = torch.maximum(self._extremes, extremes)

    def num_tokens(self) -> int:
        """Tokens on this process since the last reduction."""
        return 0 if self._sums is None else int(self._sums[self._NAMES.index("tokens")])

    def reduce(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> tuple[int, dict[str, float]]:
        """Sum over all processes in one gather, and start anew.

        Args:
            gather (`Callable`):
                Takes a tensor of shape `(1, n)` and returns those of all processes, of shape `(num_processes, n)`.

        Returns:
            The number of tokens, and `min_reward`, `mean_reward`, `max_reward` over all rows, `accuracy`, `margin` and
            `accuracy/{group}` over the labeled ones (NaN if there are none), and if there were such parts `bradley_terry_loss`
            over the labeled ones and `distillation_loss` over those that are distilled, by their weights. A tie is half right.
        """
        assert self._sums is not None
        assert self._extremes is not None
        gathered = gather(torch.cat([self._sums, self._extremes])[None]).cpu().double().numpy()
        self._sums = self._extremes = None
        low, high = gathered[:, -2:].max(axis=0)
        sums = gathered[:, :-2].sum(axis=0)
        total = dict(zip(self._NAMES, sums, strict=False))
        labeled, correct = sums[len(self._NAMES) :].reshape(2, -1)
        with np.errstate(invalid="ignore"):  # 0 / 0 where no row is labeled
            metrics = {
                "min_reward": -low,
                "mean_reward": total["reward"] / (2 * total["rows"]),
                "max_reward": high,
                "accuracy": total["correct"] / total["labeled"],
                "margin": total["margin"] / total["labeled"],
            }
            if self._distills:
                metrics["bradley_terry_loss"] = total["bradley_terry"] / total["labeled"]
                metrics["distillation_loss"] = total["distillation"] / total["weight"]
            metrics |= {f"accuracy/{name}": value for name, value in zip(self.groups, correct / labeled, strict=True)}
        return round(total["tokens"]), {key: float(value) for key, value in metrics.items()}
