"""A student that is an adapter: its reward head is trained and saved with it, and nothing but its own adapter is."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft import PeftConfig, PeftModel

from trl_pafo.errors import ConfigError

logger = logging.getLogger(__name__)

# What models of transformers call the layer that makes a reward of a hidden state.
REWARD_HEADS = ("score", "classifier")


def keep_reward_head(model: Any, peft_config: Any) -> None:
    """Make sure that the adapter to be trained holds the reward head: without it, the head is random after loading.

    peft trains and saves the head with `task_type="SEQ_CLS"`, or where `modules_to_save` names it. A `peft_config` without a
    task type gets the right one.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The student, as it was given.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Configuration of the adapter to be made; it may be changed.

    Raises:
        ConfigError: If the head would be lost.
    """
    if isinstance(peft_config, PeftConfig) and peft_config.task_type is None and not _names_a_head(peft_config):
        logger.info("`peft_config` has no task_type; it is set to SEQ_CLS, with which the reward head is trained and saved.")
        peft_config.task_type = "SEQ_CLS"
    made = [model.peft_config[name] for name in model.active_adapters] if isinstance(model, PeftModel) else []
    for config in [peft_config, *made]:
        if not isinstance(config, PeftConfig) or _task(config) == "SEQ_CLS" or _names_a_head(config):
            continue
        raise ConfigError(
            f"{'The adapter of `model`' if config is not peft_config else '`peft_config`'} has task_type={_task(config)}, so the "
            "reward head would be neither trained nor saved, and random after loading. Use task_type='SEQ_CLS' (on the command line "
            "--lora_task_type SEQ_CLS), or name the head in `modules_to_save`."
        )


def keep_head_in_format(model: Any) -> None:
    """Give the trained head of an adapter on a quantised base the number format of the states that it reads.

    TRL turns all that is trained on such a base into bfloat16. Adapters convert what they read, the head does not: without
    mixed precision it would meet states of another format, and fail.

    Args:
        model ([`~peft.PeftModel`] or [`~transformers.PreTrainedModel`]):
            The student, before its optimizer is made; others than adapters on a quantised base are left as they are.
    """
    if not isinstance(model, PeftModel) or getattr(model, "hf_quantizer", None) is None:
        return
    dtype = model.get_input_embeddings().weight.dtype
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "modules_to_save" in name:
            parameter.data = parameter.data.to(dtype)


def _task(config: PeftConfig) -> str | None:
    return getattr(config.task_type, "value", config.task_type)


def _names_a_head(config: PeftConfig) -> bool:
    return bool(set(REWARD_HEADS) & set(getattr(config, "modules_to_save", None) or ()))


@contextmanager
def active_adapter_alone(model: Any) -> Iterator[None]:
    """Inside, `save_pretrained` of a model with several adapters saves the one that is trained; the others may be teachers."""
    if not isinstance(model, PeftModel) or len(model.peft_config) == 1:
        yield
        return
    model.save_pretrained = partial(model.save_pretrained, selected_adapters=list(model.active_adapters))  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.save_pretrained
