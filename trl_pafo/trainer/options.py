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
    conditioning: str = _option(
        "Whose history a training pair is shown under, drawn anew at each showing, and what it is to learn there. 'own': its own user's, "
        "and the margin of its group's teacher. 'counterfactual': that of a random user of a group drawn by `tau`, and the margin of that "
        "group's teacher. 'posterior': the same histories, and the mixture of all teachers by how likely the history makes each group. "
        "'named': no history; the prompt names each group in turn, and the margin is that of its teacher: the model is asked once for each "
        "group, and the user's past pairs weigh the answers. Not from the paper.",
        "counterfactual",
    )
    tau: float = _option(
        "Prior of the groups under 'counterfactual' and 'posterior', and when a model of 'named' is served, in [0, 1]: 0 takes groups as "
        "often as they are in the training data, 1 all equally often. Higher values serve small groups better where a history does not tell the group. Not from the paper.",
        0.5,
    )
    teachers: dict[str, Any] | str | None = _option(
        'Teacher of each group as JSON, {"group": "path or Hub id", ...}. The argument of the trainer takes precedence.', None
    )
    teacher_batch_size: int | None = _option("Pairs per teacher forward pass. Default: twice per_device_eval_batch_size.", None)
    teacher_margin_cache_dir: str | None = _option(
        "Folder in which teacher margins are kept under the identity of teacher and data. Default: <output_dir>/teacher_margins.",
        None,
    )
    num_history: int | None = _option("Number of the user's newest past pairs in the prompt; 0 for none. Default: all.", None)
    min_num_history: int | None = _option(
        "If set, each showing of a training pair has a random number of past pairs, from this one up to those of its history, so that one "
        "model serves users with few and with many past pairs. Default: always all of them.",
        None,
    )
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
    padding_free: str = _option(
        "The sequences of a batch of an encoder without padding, and its last layer only where the reward is read: 'auto' where that gives "
        "the rewards of padded sequences (on a CPU), 'on' (an error if it does not give them), 'off'. Rewards differ only by rounding. Not "
        "from the paper.",
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
