"""The options of PAFO without those of a training, for a help page that does not load torch."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from trl_pafo.data import HISTORY_FIELDS


def _option(help: str, default: Any = MISSING, **kind: Any) -> Any:
    return field(default=default, metadata={"help": help}, **kind)


@dataclass
class PAFOOptions:
    """What [`PAFOConfig`] adds to [`~trl.RewardConfig`]. The descriptions are those of the command line and of [`PAFOConfig`]."""

    alpha: float = _option(
        "Weight of the Bradley-Terry loss in alpha * L_BT + (1 - alpha) * L_D (Eq. 8 of the paper as we read it), in [0, 1]. 1 is "
        "the plain reward model: the trainer then is RewardTrainer.",
        0.1,
    )
    distillation_loss: str = _option(
        "Loss between the margins of student and teacher, such as mse, bce, hinge or margin_bt: a name in "
        "trl_pafo/trainer/losses.py. Not from the paper.",
        "bce",
    )
    distillation_temperature: float = _option("Temperature of the bce distillation loss, in reward units, above 0.", 1.0)
    condition: str = _option(
        "Where a labeled pair is distilled: 'group' everywhere, 'correct' only where its group's teacher prefers the chosen response.",
        "group",
    )
    counterfactual_share: float = _option(
        "Share of the pairs that are also shown under the history of a user of each other group, with the margin of that group's "
        "teacher as their target, in [0, 1]. Needs histories and teachers; 0 is own-group distillation. Not from the paper.",
        1.0,
    )
    counterfactual_weight: float = _option("Weight of the distillation loss of the counterfactual rows, at least 0.", 1.0)
    teachers: dict[str, Any] | str | None = _option(
        'Teacher of each group as JSON, {"group": "path or Hub id", ...}. The argument of the trainer takes precedence.', None
    )
    teacher_scale: str = _option(
        "'rms' divides the margins of each teacher by their root mean square over its own group's labeled pairs, and multiplies "
        "all by the pooled one: two Bradley-Terry models have no common scale. 'none' leaves them. Not from the paper.",
        "none",
    )
    teacher_margin_clip: float | None = _option(
        "Clip teacher margins to plus or minus this value, in reward units, after scaling.", None
    )
    teacher_batch_size: int | None = _option("Pairs per teacher forward pass. Default: twice per_device_eval_batch_size.", None)
    teacher_margin_cache_dir: str | None = _option(
        "Folder in which teacher margins are kept under the identity of teacher and data. Default: <output_dir>/teacher_margins.",
        None,
    )
    num_history: int | None = _option("Number of the user's newest past pairs in the prompt; 0 for none. Default: all.", None)
    history_max_tokens: int | None = _option(
        "Token budget of the history. The oldest pairs that do not fit are left out; a newest pair that does not fit is shortened.",
        None,
    )
    history_fields: list[str] = _option(
        "Which parts of a past pair are shown: some of prompt, chosen, rejected.", default_factory=lambda: list(HISTORY_FIELDS)
    )
    best_checkpoint: str | None = _option(
        "Keep the checkpoint with the highest accuracy on `eval_dataset`: 'group_balanced' (mean of the groups' accuracies), "
        "'worst_group' or 'overall'. Checkpoints are written and evaluated ten times a training, or as eval_strategy, eval_steps, "
        "save_strategy or save_steps say. Not from the paper.",
        None,
    )
    prefix_sharing: str = _option(
        "A pair as one row that computes what both responses begin with (history and prompt) once: 'auto' where it gives the "
        "rewards of two rows and is faster, 'on' (an error if it does not give them), 'off'. Rewards differ only by "
        "rounding. Not from the paper.",
        "auto",
    )


def describe_options() -> str:
    """The options in the grammar of a docstring."""
    described = ""
    for option in fields(PAFOOptions):
        kind = option.type if isinstance(option.type, str) else getattr(option.type, "__name__", str(option.type))
        default = option.default_factory() if option.default is MISSING else option.default  # type: ignore[operator]
        described += (
            f"\n        {option.name} (`{kind}`, *optional*, defaults to `{default!r}`):\n            {option.metadata['help']}"
        )
    return described
