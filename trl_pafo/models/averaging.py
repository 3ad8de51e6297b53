"""One reward model from several of one base: the mean of their weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trl_pafo.errors import ConfigError
from trl_pafo.models.loading import load_reward_model


def mean_of_models(folders: Sequence[str | Path], dtype: torch.dtype = torch.float32) -> Any:
    """
    The mean of the weights of reward models that were trained from one base, each for a few epochs (a "model soup", Wortsman et al.,
    2022, arXiv 2203.05482): it has learned what each of them has, while it is still close to all. (Not from the PAFO paper.)

    Of adapters, the matrices A and B are each averaged; their product is the mean update only as far as they are close.

    Args:
        folders (`Sequence[str]` or `Sequence[Path]`):
            Checkpoints of one architecture, or adapters of one base and one configuration.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            The dtype of the result; the mean is taken in float32.

    Returns:
        A model in evaluation mode, or an adapter that can be trained further.

    Raises:
        ConfigError: If the models do not have the same weights to average, or one cannot be loaded, see
            [`~trl_pafo.models.loading.load_reward_model`].
    """
    mean: Any = None
    total: dict[str, torch.Tensor] = {}
    for folder in folders:
        model = load_reward_model(folder, dtype, is_trainable=True)
        weights = {name: weight.detach().float() for name, weight in model.named_parameters() if weight.requires_grad}
        if mean is None:
            mean, total = model, weights
            continue
        if {name: weight.shape for name, weight in weights.items()} != {name: weight.shape for name, weight in total.items()}:
            raise ConfigError(
                f"{folders[0]} and {folder} have no mean: their weights differ in name or shape. Give models of one base."
            )
        total = {name: total[name] + weight for name, weight in weights.items()}
    with torch.no_grad():
        for name, weight in mean.named_parameters():
            if name in total:
                weight.copy_(total[name] / len(folders))
    return mean
