"""A student that is an adapter: its reward head is trained and saved with it."""

import logging
from typing import Any

from peft import PeftConfig, PeftModel

from trl_pafo.errors import ConfigError
from trl_pafo.models.weights import gaps_of_base, is_of_head

logger = logging.getLogger(__name__)

# What models of transformers call the layer that makes a reward of a hidden state; peft trains and saves them with SEQ_CLS.
REWARD_HEADS = ("score", "classifier")


def keep_reward_head(model: Any, peft_config: Any, revision: str | None = None) -> None:
    """Make sure that all random weights below the reward are saved with the adapter: else they are other ones after loading.

    peft trains and saves a head with `task_type="SEQ_CLS"`, or where `modules_to_save` names it. A `peft_config` without a task
    type gets SEQ_CLS, and one of that type also saves what else the base lacks. A head that is on disk with the base may stay as it
    is. The model is the student as it was given, by name or in memory.

    Raises:
        ConfigError: If the head would be lost.
    """
    if isinstance(peft_config, PeftConfig):
        named = _named(peft_config)
        if peft_config.task_type is None and not named & set(REWARD_HEADS):
            logger.info("`peft_config` has no task_type; it is set to SEQ_CLS, with which the reward head is trained and saved.")
            peft_config.task_type = "SEQ_CLS"
        task = _task(peft_config)
        if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
            raise ConfigError(
                f"`peft_config` has task_type={task}, for which peft expects a generative model and fails. Use "
                "task_type='SEQ_CLS' (on the command line --lora_task_type SEQ_CLS)."
            )
        lost = _lost(model if isinstance(model, str) else model.config._name_or_path, revision, peft_config)
        if lost and task == "SEQ_CLS" and hasattr(peft_config, "modules_to_save"):
            logger.info(f"The base has no weights for {', '.join(lost)}; the adapter trains and saves them.")
            peft_config.modules_to_save = [*(peft_config.modules_to_save or ()), *lost]
        elif lost:
            raise _loses("`peft_config`", peft_config, lost)
    for name in model.active_adapters if isinstance(model, PeftModel) else ():
        config = model.peft_config[name]
        lost = _lost(config.base_model_name_or_path, config.revision, config) or _trained_outside(model)
        if lost:
            raise _loses("The adapter of `model`", config, lost)


def _lost(base: str | None, revision: str | None, config: PeftConfig) -> list[str]:
    """Layers of the head that neither the base on disk has nor the adapter will save."""
    saved = _named(config) | set(REWARD_HEADS if _task(config) == "SEQ_CLS" else ())
    gaps = gaps_of_base(base, revision) if base else None
    if gaps is None:  # what is nowhere on disk may be all new
        return [] if saved & set(REWARD_HEADS) else ["the reward head"]
    layers = sorted({name.rpartition(".")[0] for name in gaps.of_head})
    return [layer for layer in layers if not any(f".{name}." in f".{layer}." for name in saved)]


def _trained_outside(model: PeftModel) -> list[str]:
    """Layers of the head that are trained, but not as a part of the adapter."""
    own = getattr(model.base_model, "prefix", "modules_to_save")
    inner = model.get_base_model()
    weights = [name for name, weight in inner.named_parameters() if weight.requires_grad and is_of_head(name, inner)]
    return sorted({name.rpartition(".")[0] for name in weights if own not in name and "modules_to_save" not in name})


def _loses(which: str, config: PeftConfig, lost: list[str]) -> ConfigError:
    return ConfigError(
        f"{which} has task_type={_task(config)}, so {', '.join(lost)} would not be saved, and random after loading. Use "
        "task_type='SEQ_CLS' (on the command line --lora_task_type SEQ_CLS), or name these layers in `modules_to_save`."
    )


def _task(config: PeftConfig) -> str | None:
    return getattr(config.task_type, "value", config.task_type)


def _named(config: PeftConfig) -> set[str]:
    return set(getattr(config, "modules_to_save", None) or ())


def keep_head_in_format(model: Any) -> None:
    """Give the trained head of an adapter on a quantized base, before its optimizer is made, the dtype of the states that it reads.

    TRL turns all that is trained on such a base into bfloat16. Adapters convert what they read, the head does not: without mixed
    precision it would meet states of another dtype, and fail. Other models are left as they are.
    """
    if not isinstance(model, PeftModel) or getattr(model, "hf_quantizer", None) is None:
        return
    dtype = model.get_input_embeddings().weight.dtype
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "modules_to_save" in name:
            parameter.data = parameter.data.to(dtype)
