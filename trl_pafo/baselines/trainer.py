"""What the trainers of this wing share: checks, sums over the pairs of all processes, and the Bradley-Terry loss of each pair."""

from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset

from trl_pafo.data.groups import count_by_group, group_names
from trl_pafo.data.label_columns import normalize_columns
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.trainer.collator import PairBatch
from trl_pafo.trainer.losses import bradley_terry
from trl_pafo.trainer.trainer import PAFORewardTrainer

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""As `pair_loss` returns it: the loss, and by name the parts of it that are logged."""

_WHAT = "The training dataset"
_OF_TEACHERS = ("teacher_margin", "teacher_margins", "history_log_likelihood", "has_label")


class BaselineTrainer(PAFORewardTrainer):
    """
    [`PAFORewardTrainer`] without teachers, whose training loss is `training_loss`. Evaluation is Bradley-Terry, as there.

    A *batch* is the pairs of one forward pass on all processes: sums over it, and so losses and weights, are the same on any number of
    processes. With gradient accumulation, an optimizer step has several batches.

    Args:
        model, args, data_collator, train_dataset, *positional, **kwargs:
            As for [`PAFORewardTrainer`]; the training dataset has the columns that `columns` names, in each row, and is then no stream.
            Its columns with margins of teachers are not read.

    Raises:
        ConfigError: If teachers are given, or the data collator does not tell the groups.
        DataError: If the training dataset lacks a column, or a row has no label there. Both are raised before a model is loaded.
    """

    columns: tuple[str, ...] = ()
    """Columns of the training dataset that it reads, beside the pairs."""

    def __init__(
        self, model: Any, args: Any = None, data_collator: Any = None, train_dataset: Any = None, *positional: Any, **kwargs: Any
    ):
        self._refuse_teachers(args, kwargs)
        if train_dataset is not None:
            train_dataset = self._checked(train_dataset, data_collator)
        super().__init__(model, args, data_collator, train_dataset, *positional, **kwargs)

    def _refuse_teachers(self, args: Any, more: dict[str, Any]) -> None:
        if more.get("teachers") or getattr(args, "teachers", None):
            raise ConfigError(f"{type(self).__name__} has no teachers: leave `teachers` out, or use PAFORewardTrainer.")

    def _checked(self, rows: Any, collator: Any) -> Any:
        if self.columns:
            needed = " and ".join(f"`{name}`" for name in self.columns)
            if not isinstance(rows, Dataset) or not {*self.columns} <= {*rows.column_names}:
                raise DataError(f"{_WHAT} must have the column {needed} and be no stream: {type(self).__name__} reads it.")
            rows = normalize_columns(rows, _WHAT, self.columns)
        if "user" in self.columns and collator is not None and not hasattr(collator, "users"):
            raise ConfigError(
                "`data_collator` does not tell the users of the pairs. Use DataCollatorForGroupPreference, or leave it out."
            )
        if "group" in self.columns and collator is not None and not group_names(rows) <= {*getattr(collator, "groups", ())}:
            raise ConfigError(
                "`data_collator` does not tell the groups of the pairs. Use DataCollatorForGroupPreference with "
                f"groups={sorted(group_names(rows))}, or leave it out."
            )
        given = getattr(rows, "column_names", None) or ()
        of_teachers = [name for name in _OF_TEACHERS if name in given]
        return rows.remove_columns(of_teachers) if of_teachers else rows

    def pair_loss(self, difference: torch.Tensor, batch: PairBatch) -> Loss:
        if not self.model.training:
            return super().pair_loss(difference, batch)
        return self.training_loss(bradley_terry(difference.float(), 0.0 if batch.margin is None else batch.margin), batch)

    def training_loss(self, losses: torch.Tensor, batch: PairBatch) -> Loss:
        """The loss of a batch in training, and the parts that are logged.

        Args:
            losses (`torch.Tensor` of shape `(num_pairs,)`):
                Bradley-Terry loss of each pair of this process, in nats, float32.
            batch ([`~trl_pafo.trainer.collator.PairBatch`]):
                What else is known of the pairs.
        """
        raise NotImplementedError

    def total(self, own: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, as a term of a loss that each process computes alike.

        Launchers average the gradients of the processes, so each carries its own part times their number: the average is then the gradient
        of the loss.
        """
        num = self.accelerator.num_processes
        if num == 1:
            return own
        scaled = num * own
        return scaled + (self.accelerator.reduce(own.detach(), "sum") - scaled.detach())

    def sums(self, values: torch.Tensor, ids: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum and number of the values of the pairs of each id, over all processes, both of shape `(num,)`; see `total`."""
        of_id = F.one_hot(ids, num).to(values)
        both = self.total(torch.stack([values @ of_id, of_id.sum(0)]))
        return both[0], both[1].detach()


class GroupTrainer(BaselineTrainer):
    """A baseline whose training loss is a function of the losses of the groups of a batch, `group_loss`."""

    columns = ("group",)
    group_sizes: torch.Tensor
    """Training pairs of each group, of shape `(num_groups,)`, in the order of `group_names`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.group_names: list[str] = self.data_collator.groups
        """The groups of the training pairs, in the order of their ids."""
        if self.train_dataset is not None:
            counts = count_by_group(self.train_dataset)
            sizes = [float(counts[name]) for name in self.group_names]
            self.group_sizes = torch.tensor(sizes, device=self.args.device)  # no step copies them there

    def training_loss(self, losses: torch.Tensor, batch: PairBatch) -> Loss:
        return self.group_loss(*self.sums(losses, batch.group_id, len(self.group_names)))

    def group_loss(self, sums: torch.Tensor, counts: torch.Tensor) -> Loss:
        """The loss of a batch in training, and the parts that are logged.

        Args:
            sums (`torch.Tensor` of shape `(num_groups,)`):
                Sum of the Bradley-Terry losses of the pairs of each group, in nats.
            counts (`torch.Tensor` of shape `(num_groups,)`):
                Pairs of each group; 0 where the batch has none.
        """
        raise NotImplementedError

    def named(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """The weights of the groups by the names under which they are logged."""
        return {f"group_weight/{name}": weight for name, weight in zip(self.group_names, weights, strict=True)}


def mean_of_groups(sums: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mean loss of each group of a batch, of shape `(num_groups,)`; 0 for a group without a pair in it."""
    return sums / counts.clamp(min=1)


def check_above_zero(**values: float) -> None:
    """Raise [`ConfigError`] if one of the constants is not a number above 0."""
    wrong = [f"`{name}` must be above 0, got {value}" for name, value in values.items() if not 0 < value < float("inf")]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)}.")
