"""TensorBoard, W&B and trackio as transformers calls them: what they are given stays in this process, and none need be installed."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import MagicMock

import pytest
from transformers.integrations.integration_utils import rewrite_logs

NAMES = ("tensorboard", "wandb", "trackio")
# Said once, at the end of a training: W&B has them in the summary of a run, trackio leaves them out.
_AT_THE_END = {
    f"train/{name}"
    for name in ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")
}


@contextmanager
def trackers() -> Iterator[dict[str, Counter]]:
    """By tracker, how often a number of a key is logged."""
    found = {name: Counter() for name in NAMES}
    modules = {name: MagicMock() for name in ("wandb", "wandb.sdk.lib.config_util", "trackio", "torch.utils.tensorboard")}
    modules["wandb.sdk.lib.config_util"].ConfigError = KeyError
    writer = modules["torch.utils.tensorboard"].SummaryWriter.return_value
    writer.add_scalar = lambda key, value, step: found["tensorboard"].update({key} - _AT_THE_END)
    for name in ("wandb", "trackio"):
        modules[name].log = lambda numbers, name=name: found[name].update(numbers.keys() - {"train/global_step"})
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setattr(f"transformers.integrations.integration_utils.is_{name}_available", lambda: True)
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        yield found


def logged(history: list[dict[str, float]]) -> Counter:
    """How often a number of a key is in the logs of a training, as trackers name it."""
    keys = (key for log in history for key in rewrite_logs(log))
    return Counter(key for key in keys if key not in {"train/step", *_AT_THE_END})
