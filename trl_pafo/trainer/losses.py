"""Losses on reward margins: pure functions of tensors, one table from name to function.

A *margin* is the reward of the chosen response minus the reward of the rejected one, in reward units (nats of the
Bradley-Terry log odds). Every function takes and returns tensors of shape `(num_pairs,)`, one value a pair, unreduced.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from trl_pafo.errors import ConfigError


def bradley_terry(margin: torch.Tensor, offset: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Negative log likelihood of the label, `-log sigmoid(margin - offset)` (Bradley and Terry, 1952). The offset, TRL's `margin`
    column, is what the margin must exceed.
    """
    return -F.logsigmoid(margin - offset)


def mse(margin: torch.Tensor, teacher_margin: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Squared difference `(D - D_T)^2`. The temperature has no effect. (Not from the paper.)"""
    return (margin - teacher_margin) ** 2


def bce(margin: torch.Tensor, teacher_margin: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Cross entropy of the two preference probabilities, `t^2 BCE(sigmoid(D / t), sigmoid(D_T / t))`.

    The factor `t^2` keeps the size of the gradient when the temperature changes (Hinton et al., 2015). (Not from the paper.)
    """
    target = torch.sigmoid(teacher_margin / temperature)
    return temperature**2 * F.binary_cross_entropy_with_logits(margin / temperature, target, reduction="none")


def hinge(margin: torch.Tensor, teacher_margin: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """`max(0, D_T - D)`: the student's margin should reach the teacher's. The temperature has no effect. (Not from the paper.)

    One-sided: it can only ask for more preference for the *chosen* response, so a teacher that prefers the rejected
    one (a negative margin) is satisfied by any student that does not go further.
    """
    return torch.clamp(teacher_margin - margin, min=0.0)


def margin_bt(margin: torch.Tensor, teacher_margin: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """`-log sigmoid(D - D_T)`, the form of TRL's own `margin` column. The temperature has no effect. (Not from the paper.)"""
    return bradley_terry(margin, teacher_margin)


DISTILLATION_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "mse": mse,
    "bce": bce,
    "hinge": hinge,
    "margin_bt": margin_bt,
}
ONE_SIDED = ("hinge", "margin_bt")
"""Distillation losses whose slope in the student's margin is never positive, so that they cannot ask for a lower one."""


class PAFOLoss(NamedTuple):
    """The loss of a batch and its two parts, scalars: `loss = alpha * bradley_terry + (1 - alpha) * distillation`.

    Both parts are means over *all* rows of the batch, to which rows without a label add no Bradley-Terry loss. Divided by the share of
    labeled rows, `bradley_terry` is the mean over these.
    """

    loss: torch.Tensor
    bradley_terry: torch.Tensor
    distillation: torch.Tensor


def pafo_loss(
    margin: torch.Tensor,
    teacher_margin: torch.Tensor,
    has_label: torch.Tensor,
    *,
    alpha: float,
    distillation_loss: str = "bce",
    temperature: float = 1.0,
    offset: torch.Tensor | float = 0.0,
) -> PAFOLoss:
    r"""Eq. 8 of the paper as we read it: `L = alpha * L_BT + (1 - alpha) * L_D` (the form of `L_D` is ours).

    Every row adds its distillation loss. A row with a label adds its Bradley-Terry loss, too; one that is shown under the history of
    another user has none. Both parts are divided by the number of rows, so that the gradient of a large batch is the mean of the
    gradients of its equal parts, on one process or on many.

    Args:
        margin (`torch.Tensor` of shape `(num_rows,)`):
            The student's margins `D`.
        teacher_margin (`torch.Tensor` of shape `(num_rows,)`):
            The target of each row as a margin `D_T` ([`~trl_pafo.trainer.targets.Targets`]).
        has_label (`torch.Tensor` of shape `(num_rows,)`, bool):
            False on pairs under the history of another user.
        alpha (`float`):
            Weight of the Bradley-Terry loss, in [0, 1].
        distillation_loss (`str`, *optional*, defaults to `"bce"`):
            A key of `DISTILLATION_LOSSES`.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of `bce`, in reward units.
        offset (`torch.Tensor` or `float`, *optional*, defaults to `0.0`):
            TRL's `margin` column, for the Bradley-Terry part.

    Raises:
        ConfigError: If the distillation loss is unknown.
    """
    if distillation_loss not in DISTILLATION_LOSSES:
        raise ConfigError(f"Unknown distillation_loss {distillation_loss!r}; choose one of {sorted(DISTILLATION_LOSSES)}.")
    labeled = (has_label.to(margin.dtype) * bradley_terry(margin, offset)).mean()
    distilled = DISTILLATION_LOSSES[distillation_loss](margin, teacher_margin, temperature).mean()
    return PAFOLoss(alpha * labeled + (1 - alpha) * distilled, labeled, distilled)
