"""MGDA: the step that all groups of a batch gain from, as far as there is one."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

from trl_pafo.baselines.trainer import GroupTrainer, Loss, mean_of_groups
from trl_pafo.errors import ConfigError


class MGDARewardTrainer(GroupTrainer):
    r"""
    The multiple-gradient descent algorithm over the groups of a batch: `sum_g w_g L_g`, where `L_g` is the mean Bradley-Terry loss of group
    g in the batch and the weights, at least 0 with sum 1, make `sum_g w_g grad L_g` as short as possible. A step along it lowers
    the loss of each of these groups, unless none does.

    Désidéri (2012); Sener and Koltun: *Multi-Task Learning as Multi-Objective Optimization* (NeurIPS 2018), Eq. 3. Two groups have
    a closed form, more an exact solver. It has no constants. What is adapted: the tasks are the groups of a batch, one that is not in
    it has weight 0; gradients are those of all trainable weights, as in their Eq. 3. Their cheaper upper bound (MGDA-UB), gradients of
    hidden states, says nothing here: groups have no pair in common, so those gradients are orthogonal whatever groups agree on.

    The gradient of each group is one more backward pass, and is kept as a vector of the size of the trainable weights: adapters are
    cheap. Several processes by DDP; sharded weights (FSDP, DeepSpeed), compiled models and reentrant gradient checkpointing do
    not give single gradients, and are refused.

    Args:
        *args, **kwargs:
            As for [`PAFORewardTrainer`]; the training dataset has the column `group` (str), and is no stream.

    Raises:
        ConfigError: If an option does not give single gradients, or teachers are given.
        DataError: If the training dataset does not tell the group of each pair.
    """

    _name = "MGDA"
    _tag_names = ["trl", "reward-trainer", "mgda"]
    how_trained = (
        "It was trained by the multiple-gradient descent algorithm (Sener and Koltun, 2018) on the Bradley-Terry loss: each step was to lower the "
        "loss of all groups of a batch."
    )

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        options = self.args
        checkpointing: Any = options.gradient_checkpointing_kwargs or {}
        wrong = {
            "FSDP": self.is_fsdp_enabled,
            "DeepSpeed": self.is_deepspeed_enabled,
            "torch_compile": options.torch_compile,
            "reentrant gradient checkpointing": options.gradient_checkpointing and checkpointing.get("use_reentrant"),
        }
        if found := [name for name, used in wrong.items() if used]:
            raise ConfigError(
                f"MGDA needs the gradient of each group by itself, which {' and '.join(found)} does not give. Leave it out."
            )

    def group_loss(self, sums: torch.Tensor, counts: torch.Tensor) -> Loss:
        losses = mean_of_groups(sums, counts)
        present = [group for group, count in enumerate(counts.tolist()) if count]
        shares = np.zeros(len(losses))
        if len(present) == 1:
            shares[present] = 1.0
        else:
            gradients = torch.stack([self._gradient(losses[group]) for group in present])
            shares[present] = min_norm_weights((gradients @ gradients.T).cpu().numpy())
        weights = torch.as_tensor(shares, dtype=losses.dtype, device=losses.device)
        return (weights * losses).sum(), self.named(weights)

    def _gradient(self, loss: torch.Tensor) -> torch.Tensor:
        """The gradient of a loss of all processes, of shape `(num_trainable_weights,)`, without a trace in the weights."""
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        parts = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
        own = torch.cat([part.flatten().float() for part in parts])
        return self.accelerator.reduce(own, "mean")  # as launchers do


def min_norm_weights(gram: ArrayLike) -> NDArray[np.float64]:
    """The weights, at least 0 with sum 1, of the shortest vector `sum_g w_g v_g`, of shape `(num_vectors,)`.

    `gram` has the products `v_g . v_h`, of shape `(num_vectors, num_vectors)`. For two vectors `w_1 = clip((v_2 - v_1) . v_2 /
    |v_1 - v_2|^2, 0, 1)`. For more it is the non-negative least squares problem `|F x|^2 + (sum x - 1)^2` with `F^T F` the products: along a
    direction `x = s w` the least value is `n / (1 + n)`, `n = |F w|^2`, so the best direction has the least `n`. Equal weights where
    all vectors are 0.
    """
    products = np.asarray(gram, dtype=np.float64)
    number, size = len(products), np.trace(products)
    if not size > 0:
        return np.full(number, 1 / number)
    products = products / size
    if number == 2:
        apart = products[0, 0] - 2 * products[0, 1] + products[1, 1]
        first = np.clip((products[1, 1] - products[0, 1]) / apart, 0, 1) if apart > 0 else 0.5
        return np.array([first, 1 - first])
    values, vectors = np.linalg.eigh(products)
    root = (vectors * np.sqrt(np.clip(values, 0, None))).T
    found, _ = nnls(np.vstack([root, np.ones(number)]), np.append(np.zeros(number), 1.0))
    return found / found.sum()
