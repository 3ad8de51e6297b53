"""Weights of groups that a training moves, kept in its checkpoints."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class GroupWeights(TrainerCallback, ExportableState):  # type: ignore[misc]  # both are plain classes
    """
    The weights `q_g` of groups, which start equal and are multiplied by `exp(step_g)`; their sum is 1.

    As a callback of the training they are in `trainer_state.json` of each checkpoint, from where a training that resumes takes them. They
    are kept as logarithms, the largest 0, so that steps far below the precision of float32 near 1 add up.

    Args:
        groups (`Sequence[str]`):
            Names of the groups.
    """

    def __init__(self, groups: Sequence[str]):
        self.groups = list(groups)
        self.log_weights = torch.zeros(len(self.groups))

    @property
    def weights(self) -> torch.Tensor:
        """`q_g`, of shape `(num_groups,)`."""
        return torch.softmax(self.log_weights, dim=0)

    def multiply(self, steps: torch.Tensor) -> torch.Tensor:
        """Multiply each weight by `exp(step)`; return the new weights."""
        moved = self.log_weights.to(steps) + steps.detach()
        self.log_weights = moved - moved.max()
        return self.weights

    def state(self) -> dict[str, Any]:
        return {"args": {"groups": self.groups}, "attributes": {"saved": self.log_weights.tolist()}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Those of the checkpoint that the training resumes from, else equal ones."""
        found = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        self.log_weights = torch.tensor(found["attributes"]["saved"]) if found else torch.zeros(len(self.groups))
        state.stateful_callbacks[type(self).__name__] = self.state()  # the Trainer saves those that it knows from the beginning
