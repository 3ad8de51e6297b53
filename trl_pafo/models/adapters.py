"""A student by its name, or as an adapter: no weight but a new head is random, the head is saved, and no other adapter is."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig

from trl_pafo.errors import ConfigError, TrlPafoError
from trl_pafo.models.scoring import adapter_config, check_reward_model, local_folder
from trl_pafo.models.weights import Gaps, find_gaps, is_of_head, name_some

logger = logging.getLogger(__name__)

# What models of transformers call the layer that makes a reward of a hidden state; peft trains and saves them with SEQ_CLS.
REWARD_HEADS = ("score", "classifier")


def check_student(model: str, init_kwargs: Mapping[str, Any], trains: bool) -> None:
    """Raise where a model that a trainer loads by name would get random weights; none is read. A new head is right to train.

    Args:
        model (`str`):
            Folder or Hub id.
        init_kwargs (`Mapping[str, Any]`):
            The `model_init_kwargs` that it is loaded with.
        trains (`bool`):
            Whether it is to be trained; else it is to be evaluated, and needs its head.

    Raises:
        ConfigError: If weights are missing, or the folder is one of an adapter that is to be trained.
    """
    if not init_kwargs.get("use_safetensors") or {"gguf_file", "subfolder", "variant"} & set(init_kwargs):
        return  # weights whose names are not looked at here; transformers reports what they lack
    source, revision = model, init_kwargs.get("revision")
    if not trains:
        check_reward_model(local_folder(source, revision))
        return
    folder = _folder_of(source, revision)
    if folder is not None and adapter_config(folder) is not None:
        raise ConfigError(
            f"{source} is an adapter, which by its name would be loaded frozen. To train it further, give `model` the "
            "PeftModel: PeftModel.from_pretrained(base, folder, is_trainable=True)."
        )
    gaps = _gaps_of(source, revision)
    if gaps is None:
        return
    missing = [name for name in gaps.missing if name not in gaps.of_head]
    if missing:
        raise ConfigError(
            f"{source} holds no weights for {name_some(missing)}: they would be drawn at random, and not only a new reward head. Name the "
            "whole of a pretrained model."
        )
    if gaps.misfits and not init_kwargs.get("ignore_mismatched_sizes"):
        raise ConfigError(
            f"{source} holds weights of another shape for {name_some(gaps.misfits)} than a reward model of one label has. A new head in "
            "their place is made by model_init_kwargs={'ignore_mismatched_sizes': True}."
        )


def keep_reward_head(model: Any, peft_config: Any, revision: str | None = None) -> None:
    """Make sure that all random weights below the reward are saved with the adapter: else they are other ones after loading.

    peft trains and saves a head with `task_type="SEQ_CLS"`, or where `modules_to_save` names it. A `peft_config` without a task type
    gets the right one, and one of that type is told to save what else the base lacks. A head that is on disk with the base may stay
    as it is.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The student, as it was given.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Configuration of the adapter to be made; it may be changed.
        revision (`str`, *optional*):
            Branch, tag or commit of a model by name.

    Raises:
        ConfigError: If the head would be lost.
    """
    if isinstance(peft_config, PeftConfig):
        if peft_config.task_type is None and not _names_a_head(peft_config):
            logger.info("`peft_config` has no task_type; it is set to SEQ_CLS, with which the reward head is trained and saved.")
            peft_config.task_type = "SEQ_CLS"
        if _task(peft_config) in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
            raise ConfigError(
                f"`peft_config` has task_type={_task(peft_config)}, with which peft takes the model for one that generates, and fails. Use "
                "task_type='SEQ_CLS' (on the command line --lora_task_type SEQ_CLS)."
            )
        lost = _lost(model if isinstance(model, str) else model.config._name_or_path, revision, peft_config)
        if lost and _task(peft_config) == "SEQ_CLS" and hasattr(peft_config, "modules_to_save"):
            logger.info(f"The base has no weights for {', '.join(lost)}; the adapter trains and saves them.")
            peft_config.modules_to_save = [*(peft_config.modules_to_save or ()), *lost]
        elif lost:
            raise _loses("`peft_config`", peft_config, lost)
    if not isinstance(model, PeftModel):
        return
    for name in model.active_adapters:
        config = model.peft_config[name]
        lost = _lost(config.base_model_name_or_path, config.revision, config) or _trained_outside(model)
        if lost:
            raise _loses("The adapter of `model`", config, lost)


def _lost(base: str | None, revision: str | None, config: PeftConfig) -> list[str]:
    """Layers of the head that neither the base on disk has nor the adapter will save."""
    saved = {*(REWARD_HEADS if _task(config) == "SEQ_CLS" else ()), *(getattr(config, "modules_to_save", None) or ())}
    gaps = _gaps_of(base, revision) if base else None
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


def _gaps_of(source: str, revision: str | None) -> Gaps | None:
    """What a base lacks of a reward model; `None` where that cannot be told without loading it."""
    folder = _folder_of(source, revision)
    if folder is None:
        return None
    try:
        return find_gaps(folder, AutoConfig.from_pretrained(folder, num_labels=1, trust_remote_code=False))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError):  # loading says more
        return None


def _folder_of(source: str, revision: str | None) -> Path | None:
    """Where a base is on disk; `None` where it cannot be had, or has no safetensors, as loading says then."""
    try:
        return local_folder(source, revision)
    except TrlPafoError:
        return None


def keep_head_in_format(model: Any) -> None:
    """Give the trained head of an adapter on a quantized base the dtype of the states that it reads.

    TRL turns all that is trained on such a base into bfloat16. Adapters convert what they read, the head does not: without
    mixed precision it would meet states of another format, and fail.

    Args:
        model ([`~peft.PeftModel`] or [`~transformers.PreTrainedModel`]):
            The student, before its optimizer is made; others than adapters on a quantized base are left as they are.
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
