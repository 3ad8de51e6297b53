"""The options of PAFO without those of a training, for a help page that does not load torch."""

from dataclasses import dataclass, field
from typing import Any

from trl_pafo.data import HISTORY_FIELDS


@dataclass
class PAFOOptions:
    """What [`PAFOConfig`] adds to [`~trl.RewardConfig`]; each option is described there."""

    alpha: float = field(
        default=0.1,
        metadata={
            "help": "Weight of the Bradley-Terry loss in alpha * L_BT + (1 - alpha) * L_D, in [0, 1]. 1 is plain RewardTrainer."
        },
    )
    distillation_loss: str = field(
        default="bce",
        metadata={"help": "Loss between student and teacher margins: mse, bce, hinge or margin_bt."},
    )
    distillation_temperature: float = field(default=1.0, metadata={"help": "Temperature of the bce distillation loss, above 0."})
    condition: str = field(
        default="group",
        metadata={"help": "'group': distill every labeled pair; 'correct': only where the teacher prefers the chosen response."},
    )
    counterfactual_share: float = field(
        default=1.0,
        metadata={
            "help": "Share of the pairs also shown under histories of the other groups, in [0, 1]. 0 is own-group distillation."
        },
    )
    counterfactual_weight: float = field(
        default=1.0, metadata={"help": "Weight of the distillation loss of the counterfactual rows, at least 0."}
    )
    teachers: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'Teacher of each group as JSON, {"group": "path or Hub id", ...}.'},
    )
    teacher_scale: str = field(
        default="none", metadata={"help": "'rms' puts the margins of all teachers on one scale; 'none' leaves them."}
    )
    teacher_margin_clip: float | None = field(
        default=None, metadata={"help": "Clip teacher margins to plus or minus this value, in reward units."}
    )
    teacher_batch_size: int | None = field(
        default=None, metadata={"help": "Pairs in a teacher's forward pass. Default: twice per_device_eval_batch_size."}
    )
    teacher_margin_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder for teacher margins. Default: <output_dir>/teacher_margins."}
    )
    num_history: int | None = field(
        default=None, metadata={"help": "Past pairs of the user in the prompt, newest first. Default: all that are given."}
    )
    history_max_tokens: int | None = field(
        default=None, metadata={"help": "Token budget of the history; the oldest pairs that do not fit are left out."}
    )
    history_fields: list[str] = field(
        default_factory=lambda: list(HISTORY_FIELDS),
        metadata={"help": "What of a past pair is shown: some of prompt, chosen, rejected."},
    )
    prefix_sharing: str = field(
        default="auto",
        metadata={
            "help": "A pair as one row that computes what both responses begin with once: 'auto' where it is exact and pays, 'on' "
            "(an error where it is not exact), 'off'."
        },
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Training batches of pairs of similar length, as many as fit into this many tokens, padding included, and at most "
            "per_device_train_batch_size."
        },
    )
    max_tokens_per_eval_batch: int | None = field(
        default=None,
        metadata={"help": "The same for evaluation, in the place of per_device_eval_batch_size. Default: max_tokens_per_batch."},
    )
