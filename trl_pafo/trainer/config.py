"""PAFOConfig: every option of PAFO, its unit, its default and its source."""

import copy
import math
import os
from dataclasses import MISSING, dataclass, fields

from trl import RewardConfig

from trl_pafo.data.history import check_history_options
from trl_pafo.errors import ConfigError
from trl_pafo.trainer.losses import CONDITIONS, DISTILLATION_LOSSES
from trl_pafo.trainer.options import PAFOOptions

TEACHER_SCALES = ("none", "rms")
PREFIX_SHARING = ("auto", "on", "off")

# Endings of evaluation metrics that are better when lower; the base class knows only "loss".
_LOWER_IS_BETTER = ("_difference", "_std", "_gini", "_theil")


@dataclass
class PAFOConfig(PAFOOptions, RewardConfig):
    r"""
    Configuration class for the [`PAFORewardTrainer`].

    This class includes only the parameters that are specific to PAFO. For the others, please refer to the
    [`~trl.RewardConfig`] and [`~transformers.TrainingArguments`] documentation.

    Parameters:
        > Parameters that control the loss

        alpha (`float`, *optional*, defaults to `0.1`):
            Weight of the Bradley-Terry loss in `alpha * L_BT + (1 - alpha) * L_D` (Eq. 8 of the paper as we read it), in
            [0, 1]. `1.0` is the plain reward model: the trainer then *is* [`~trl.RewardTrainer`].
        distillation_loss (`str`, *optional*, defaults to `"bce"`):
            Loss between the margin of the student and the margin of the teacher: `"mse"`, `"bce"`, `"hinge"` or
            `"margin_bt"`. All four are ours.
        distillation_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of `"bce"`, in reward units, above 0.
        condition (`str`, *optional*, defaults to `"group"`):
            Where a labeled pair is distilled: `"group"` everywhere (the plain reading), `"correct"` only where the
            teacher of its group prefers the chosen response.
        counterfactual_share (`float`, *optional*, defaults to `1.0`):
            Share of the training pairs that are also shown under the history of a user of each other group, with the
            margin of *that* group's teacher as their target, in [0, 1]. Needs a `history` column and `teachers`; `0.0`
            distills each pair under its own group alone. Not from the paper.
        counterfactual_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the distillation loss of those rows, at least 0.

        > Parameters that control the teachers

        teachers (`dict[str, str]` or `str`, *optional*):
            Teacher of each group, a path or Hub id by group name (on the command line as JSON). The `teachers` argument of
            the trainer takes precedence.
        teacher_scale (`str`, *optional*, defaults to `"none"`):
            `"rms"` divides each teacher's margins by their root mean square over the labeled pairs of its own group and
            multiplies all by the pooled root mean square: two Bradley-Terry models have no common scale. Not from the paper.
        teacher_margin_clip (`float`, *optional*):
            Teacher margins are clipped to plus or minus this value, in reward units, after scaling.
        teacher_batch_size (`int`, *optional*):
            Number of pairs in a forward pass of a teacher. Defaults to twice `per_device_eval_batch_size`.
        teacher_margin_cache_dir (`str`, *optional*):
            Folder in which teacher margins are kept under the identity of teacher and data. Defaults to
            `<output_dir>/teacher_margins`.

        > Parameters that control the history in the prompt

        num_history (`int`, *optional*):
            How many of a row's past pairs are put into the prompt, the newest ones. `None` takes all that the `history`
            column has, `0` none.
        history_max_tokens (`int`, *optional*):
            Token budget of the history; the oldest pairs that do not fit are left out, and a newest pair that does not fit
            alone is shortened.
        history_fields (`list[str]`, *optional*, defaults to `["prompt", "chosen", "rejected"]`):
            What of a past pair is shown.

        > Parameters that control the speed

        prefix_sharing (`str`, *optional*, defaults to `"auto"`):
            Whether a pair is one row, in which what both responses begin with (history and prompt) is computed once:
            `"auto"` where the model gives the rewards of two rows and the lengths of the pairs promise a gain, `"on"`
            wherever the rewards are those of two rows, else an error, `"off"` never. Rewards differ by rounding alone. Not from the paper.
        max_tokens_per_batch (`int`, *optional*):
            Budget of a training batch of a process, in tokens with padding. A batch is then made of pairs of similar length, as
            many as fit, and `per_device_train_batch_size` is the most it may have. An optimizer step still follows the mean over
            all its pairs. `None` makes batches of `per_device_train_batch_size` pairs. Not from the paper.
        max_tokens_per_eval_batch (`int`, *optional*):
            The same for evaluation and prediction, which hold no gradients and have room for more, in the place of
            `per_device_eval_batch_size`. Defaults to `max_tokens_per_batch`.
    """

    _VALID_DICT_FIELDS = [*RewardConfig._VALID_DICT_FIELDS, "teachers"]

    def __post_init__(self) -> None:
        if self.greater_is_better is None and (self.metric_for_best_model or "").endswith(_LOWER_IS_BETTER):
            self.greater_is_better = False
        if isinstance(self.teachers, dict):  # which is written to the model card and to trackers as JSON
            self.teachers = {group: os.fspath(t) if isinstance(t, os.PathLike) else t for group, t in self.teachers.items()}
        super().__post_init__()
        self.check()

    def check(self) -> None:
        """Raise [`ConfigError`] where an option has a value that cannot be used."""
        _check_range("alpha", self.alpha, 0.0, 1.0)
        _check_range("counterfactual_share", self.counterfactual_share, 0.0, 1.0)
        _check_range("counterfactual_weight", self.counterfactual_weight, 0.0, math.inf)
        _check_choice("distillation_loss", self.distillation_loss, tuple(DISTILLATION_LOSSES))
        _check_choice("condition", self.condition, CONDITIONS)
        _check_choice("teacher_scale", self.teacher_scale, TEACHER_SCALES)
        _check_choice("prefix_sharing", self.prefix_sharing, PREFIX_SHARING)
        if not self.distillation_temperature > 0:
            raise ConfigError(f"`distillation_temperature` must be above 0, got {self.distillation_temperature}.")
        if self.teacher_margin_clip is not None and not self.teacher_margin_clip > 0:
            raise ConfigError(f"`teacher_margin_clip` must be above 0 (or None), got {self.teacher_margin_clip}.")
        check_history_options(self.num_history, self.history_max_tokens, self.history_fields)
        self._check_batches()
        if self.teachers is not None and not isinstance(self.teachers, dict):
            raise ConfigError(
                f"`teachers` must map each group to a path or Hub id, got {type(self.teachers).__name__}. On the command "
                """line write it as JSON: --teachers '{"majority": "PATH", "minority": "PATH"}'."""
            )

    def _check_batches(self) -> None:
        for name in ("max_tokens_per_batch", "max_tokens_per_eval_batch"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"`{name}` must be a whole number of at least 1 (or None), got {value!r}.")
        strategy = getattr(self, "train_sampling_strategy", "random")
        if strategy == "batch_rebalance":
            raise ConfigError(
                "train_sampling_strategy='batch_rebalance' makes batches of unequal size and weighs their pairs unequally. Set "
                "`max_tokens_per_batch` in its place, which weighs all alike, or use 'group_by_length'."
            )
        if self.max_tokens_per_batch is None:
            return
        if strategy == "sequential":
            raise ConfigError(
                "`max_tokens_per_batch` puts pairs of similar length together, train_sampling_strategy='sequential' keeps their order. "
                "Choose one of them."
            )
        if getattr(self.accelerator_config, "split_batches", False):
            raise ConfigError(
                "`max_tokens_per_batch` gives each process batches of its own, split_batches=True cuts one batch for all. Leave "
                "`split_batches` out of `accelerator_config`."
            )

    @classmethod
    def from_reward_config(cls, args: RewardConfig) -> "PAFOConfig":
        """Return `args` as a [`PAFOConfig`] with the defaults of PAFO; a `PAFOConfig` is returned as it is."""
        if isinstance(args, cls):
            return args
        if not isinstance(args, RewardConfig):
            raise ConfigError(f"`args` must be a PAFOConfig or a RewardConfig, got {type(args).__name__}.")
        config = copy.copy(args)
        # A second __post_init__ would derive the derived fields again, from values that are already derived.
        config.__class__ = cls
        known = {f.name for f in fields(RewardConfig)}
        for f in fields(cls):
            if f.name not in known:
                setattr(config, f.name, f.default if f.default is not MISSING else f.default_factory())  # type: ignore[operator]
        return config  # type: ignore[return-value]


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN fails too
        raise ConfigError(f"`{name}` must be in [{low:g}, {high:g}], got {value}.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
