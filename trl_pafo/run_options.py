"""Which options decide the result of a training in a run: another value asks for another training."""

from typing import Any

from trl import ModelConfig

from trl_pafo.config import PAFOConfig

STUDENT_OPTIONS = (
    "alpha",
    "distillation_loss",
    "distillation_temperature",
    "condition",
    "counterfactual_share",
    "counterfactual_weight",
    "teacher_scale",
    "teacher_margin_clip",
)
"""Options of PAFO that only the student depends on: changing them must not ask for new teachers."""

# Options that decide a training's result.
TRAINING_OPTIONS = (
    "seed",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "data_seed",
    "warmup_steps",
    "weight_decay",
    "optim",
    "bf16",
    "fp16",
    "max_length",
    "disable_dropout",
    "center_rewards_coefficient",
    "train_sampling_strategy",
    "max_tokens_per_batch",
)
MODEL_OPTIONS = (
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "attn_implementation",
    "model_name_or_path",
    "model_revision",
    "dtype",
    "use_peft",
    "lora_r",
    "lora_alpha",
    "lora_target_modules",
)
# Those that came later are named only where they are used, so that runs of older versions that did not use them can go on.
_LATER_MODEL_OPTIONS = ("lora_modules_to_save", "lora_target_parameters")


def training_inputs(args: PAFOConfig, model: ModelConfig) -> dict[str, Any]:
    """Inputs of a stage that trains, by name."""
    inputs = {name: getattr(args, name) for name in TRAINING_OPTIONS}
    inputs |= {name: getattr(model, name) for name in MODEL_OPTIONS}
    return inputs | {name: value for name in _LATER_MODEL_OPTIONS if (value := getattr(model, name, None)) is not None}
