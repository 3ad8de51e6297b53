"""PAFOConfig: RewardConfig with the options of PAFO, checked."""

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainingArguments
from trl import RewardConfig

from trl_pafo.data.history import check_history_options
from trl_pafo.errors import ConfigError
from trl_pafo.trainer.best_checkpoint import fill_in
from trl_pafo.trainer.losses import DISTILLATION_LOSSES
from trl_pafo.trainer.options import PAFOOptions, describe_options

CONDITIONINGS = ("own", "counterfactual", "posterior", "named")
AUTO_ON_OFF = ("auto", "on", "off")

# Endings of evaluation metrics that are better when lower; the base class knows only "loss".
_LOWER_IS_BETTER = ("accuracy_difference", "accuracy_std", "accuracy_gini", "accuracy_theil")


def is_better_when_lower(metric: str | None) -> bool:
    """Whether an evaluation metric of ours is, which a [`~trl.RewardConfig`] does not know: it takes all but losses for better when higher."""
    return (metric or "").endswith(_LOWER_IS_BETTER)


@dataclass
class PAFOConfig(PAFOOptions, RewardConfig):
    r"""
    Configuration class for the [`PAFORewardTrainer`].

    This class includes only the parameters that are specific to PAFO. For the others, please refer to the
    [`~trl.RewardConfig`] and [`~transformers.TrainingArguments`] documentation. Reward units are nats of the Bradley-Terry log odds.

    Parameters:"""

    _VALID_DICT_FIELDS = [*RewardConfig._VALID_DICT_FIELDS, "teachers"]

    def __post_init__(self) -> None:
        if self.greater_is_better is None and is_better_when_lower(self.metric_for_best_model):
            self.greater_is_better = False
        fill_in(self)
        if isinstance(self.teachers, dict):  # which is written to the model card and to trackers as JSON
            self.teachers = {group: os.fspath(t) if isinstance(t, os.PathLike) else t for group, t in self.teachers.items()}
        super().__post_init__()
        self.check()

    @property
    def pairs_at_once(self) -> int:
        """Pairs of the forward passes that all processes make at the same time; with `gradient_accumulation_steps`, those of a step."""
        return self.train_batch_size * self.world_size

    def check(self) -> None:
        """Raise [`ConfigError`] where an option has a value that cannot be used."""
        for name in ("alpha", "tau"):
            if not 0 <= getattr(self, name) <= 1:  # NaN fails too
                raise ConfigError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")
        for name, choices in (
            ("distillation_loss", DISTILLATION_LOSSES),
            ("conditioning", CONDITIONINGS),
            ("prefix_sharing", AUTO_ON_OFF),
            ("padding_free", AUTO_ON_OFF),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        if not self.distillation_temperature > 0:
            raise ConfigError(f"`distillation_temperature` must be above 0, got {self.distillation_temperature}.")
        most = math.inf if self.num_history is None else self.num_history
        if self.min_num_history is not None and not 0 <= self.min_num_history <= most:
            raise ConfigError(
                f"`min_num_history` must be from 0 to `num_history` ({self.num_history}), or None, got {self.min_num_history}."
            )
        if self.min_num_history is not None and self.conditioning == "named":
            raise ConfigError(
                f"min_num_history={self.min_num_history} says how many past pairs a prompt shows, and with conditioning='named' it shows none. "
                "Leave one of them out."
            )
        check_history_options(self.num_history, self.history_max_tokens, self.history_fields)
        if self.teachers is not None and not isinstance(self.teachers, dict):
            raise ConfigError(
                f"`teachers` must map each group to a path or Hub id, got {type(self.teachers).__name__}. On the command "
                """line write it as JSON: --teachers '{"majority": "PATH", "minority": "PATH"}'."""
            )
        if getattr(self, "train_sampling_strategy", "random") == "batch_rebalance":
            raise ConfigError(
                "train_sampling_strategy='batch_rebalance' makes batches of unequal size and weighs their pairs unequally. Use "
                "'group_by_length'."
            )
        # `current_accelerator` tells what torch was built for, which this machine may lack.
        if self.activation_offloading and not torch.accelerator.is_available():
            raise ConfigError(
                "activation_offloading=True moves activations from the accelerator to the host, and this machine has no accelerator. "
                "Leave it out; gradient_checkpointing=True saves memory here."
            )

    @classmethod
    def from_reward_config(cls, args: Any) -> "PAFOConfig":
        """Return `args` as a [`PAFOConfig`] with the defaults of PAFO; a `PAFOConfig` is returned as it is.

        Raises:
            ConfigError: If it is no [`~trl.RewardConfig`].
        """
        if isinstance(args, cls):
            return args
        if not isinstance(args, RewardConfig):
            raise ConfigError(f"`args` must be a PAFOConfig or a RewardConfig, got {type(args).__name__}.")
        config = cls.__new__(cls)
        # Not by __init__: its __post_init__ would derive values again, from values that are derived already.
        vars(config).update(vars(PAFOOptions()), **vars(args))
        if is_better_when_lower(args.metric_for_best_model):
            config.greater_is_better = False
        return config


def check_visible_gpus(args: TrainingArguments, model: Any = None) -> None:
    """Raise [`ConfigError`] where transformers would train in `nn.DataParallel`, which tears the pairs of a batch apart: several GPUs
    are visible to this process, over which the model, loaded or to be loaded by `model_init_kwargs`, is not spread.
    """
    options: Any = getattr(args, "model_init_kwargs", None) or {}
    if args.n_gpu > 1 and not (getattr(model, "hf_device_map", None) or options.get("device_map")):
        raise ConfigError(
            f"{args.n_gpu} GPUs are visible to this one process, which trains on one. Start a process for each with `accelerate launch` or "
            "`torchrun`, or let it see one: CUDA_VISIBLE_DEVICES=0. A model that one cannot hold is spread over all by "
            """model_init_kwargs={"device_map": "auto"}."""
        )


PAFOConfig.__doc__ = f"{PAFOConfig.__doc__}{describe_options()}\n    "
