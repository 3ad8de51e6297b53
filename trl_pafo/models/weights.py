"""Which weights of a model its files lack, read from their headers: transformers would initialize these at random."""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig
from transformers.utils import logging

from trl_pafo.errors import ConfigError, TrlPafoError
from trl_pafo.models.safe_loading import (
    SAFELY,
    adapter_config,
    base_folder,
    check_model_folder,
    has_tokenizer,
    load_config,
    load_saved_tokenizer,
    local_folder,
    reason,
    weight_files,
)

_Shapes = dict[str, list[int]]


class Gaps(NamedTuple):
    """Names of the weights that a checkpoint lacks of a model."""

    missing: list[str]
    """In no file."""
    misfits: list[str]
    """Of another shape there."""
    of_head: list[str]
    """Those of both that belong to the reward head, or to the pooler below it: what a new head is made of."""


def find_gaps(folder: Path, config: Any, added: _Shapes | None = None) -> Gaps:
    """What the files of a checkpoint lack of the reward model that they would be loaded into. Headers alone are read.

    transformers is asked, with empty tensors of the names and shapes in the files: it knows which weights are tied, renamed, or not
    needed. Names of quantized weights are a matter of their library, so there only the head is looked for. `added` are the weights
    that an adapter brings, under the names of the model. A model that transformers does not know raises [`ConfigError`].
    """
    architectures: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if type(config) not in architectures:
        raise ConfigError(
            f"{folder} is of type {config.model_type}, of which transformers has no sequence classification model. Use another one."
        )
    model_class, config = architectures[type(config)], copy.deepcopy(config)
    is_quantized = getattr(config, "quantization_config", None) is not None
    if is_quantized:
        del config.quantization_config
    empty = {name: torch.empty(shape, device="meta") for name, shape in _shapes_in(*weight_files(folder)).items()}
    with _quiet(), complete_weights(), torch.random.fork_rng(devices=[]):
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=empty,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **SAFELY,
        )
    needed = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    misfits = {name for name, *_ in info["mismatched_keys"]}
    missing = set(info["missing_keys"])
    for name, shape in (added or {}).items():
        if name in needed:
            missing.discard(name)
            misfits.discard(name)
            if shape != needed[name] and is_of_head(name, model):  # embeddings may have grown with the tokenizer
                misfits.add(name)
    of_head = {name for name in missing | misfits if is_of_head(name, model)}
    if is_quantized:
        missing, misfits = missing & of_head, misfits & of_head
    return Gaps(sorted(missing), sorted(misfits), sorted(of_head))


def check_reward_model(folder: str | Path) -> None:
    """Raise where a saved model or adapter could not give rewards, or would give random ones; its weights are not read.

    Each weight has to be in the checkpoint, in the adapter, or in the base of the adapter.

    Raises:
        ConfigError: If weights are missing, above all those of the reward head, if there is other than one label, if the reward would depend
            on padding, or if it cannot be read. The message names the weights and the fix.
    """
    folder = Path(folder)
    check_model_folder(folder)
    adapter = adapter_config(folder)
    base = folder if adapter is None else base_folder(adapter)
    with as_config_error(folder):
        config = load_config(folder)
        shapes = {} if adapter is None else _shapes_in(folder / "adapter_model.safetensors")
        brought = {name.removeprefix("base_model.model."): shape for name, shape in shapes.items()}
        gaps = find_gaps(base, config, brought)
    if getattr(config, "summary_type", None) == "last":  # XLNet
        raise ConfigError(
            f"{folder} reads its reward at the last position, which is padding wherever a sequence is shorter than others. Score it with a "
            "function (--reward_function) that pads on the left, or use another model."
        )
    where = f"{folder} holds no" if adapter is None else f"Neither the adapter {folder} nor its base {base} holds"
    if gaps.missing:
        only_head = set(gaps.missing) <= set(gaps.of_head)
        fix = "Train it with RewardTrainer, and save all of it: model.save_pretrained, not that of a part of it"
        if only_head and adapter is not None:
            fix = "Train it again with task_type='SEQ_CLS', or with these layers in `modules_to_save`, or on a base that has a trained head"
        elif only_head:
            rows = [name for name, shape in _shapes_in(*weight_files(folder)).items() if shape[:-1] == [1]]
            if others := [name for name in rows if "embed" not in name]:
                fix = f"If {name_some(others)} is its head under another name, load it with its own code, and score with a function (--reward_function)"
        raise ConfigError(
            f"{where} weights for {name_some(gaps.missing)}{', so there is no reward head' if only_head else ''}: "
            f"they would be random, and so would the rewards. {fix}."
        )
    _check_labels(config, str(folder))
    if gaps.misfits:
        raise ConfigError(
            f"{where} weights of the right shape for {name_some(gaps.misfits)}. Save the model again, with its configuration."
        )
    if adapter is not None and has_tokenizer(folder) and not any("embed" in name and "lora" not in name for name in brought):
        new_tokens = len(load_saved_tokenizer(folder)) - config.get_text_config().vocab_size
        if new_tokens > 0:
            raise ConfigError(
                f"The tokenizer of the adapter {folder} has {new_tokens} tokens more than its base {base}, and the adapter holds "
                "no embeddings for them: they would be random. Save the adapter with save_embedding_layers=True, or with the "
                "tokenizer of the base."
            )


def check_loaded_model(model: Any, name: str) -> None:
    """Raise where a model in memory gives other than one reward a sequence.

    Raises:
        ConfigError: If it has other than one label, or is a language model; the message calls it `name`.
    """
    _check_labels(getattr(model, "config", None), name)
    if getattr(model, "get_output_embeddings", lambda: None)() is not None:
        raise ConfigError(
            f"{name} is a language model, {type(model).__name__}, which gives no rewards. Load it with "
            "AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)."
        )


def check_student(model: str, init_kwargs: Mapping[str, Any], trains: bool) -> None:
    """Raise [`ConfigError`] where a model that a trainer loads by name, with the `model_init_kwargs`, would get random weights;
    none is read.

    A new head is right to train; a model that is only evaluated needs its own. The folder of an adapter would be frozen.
    """
    if not init_kwargs.get("use_safetensors") or {"gguf_file", "subfolder", "variant"} & set(init_kwargs):
        return  # weights whose names are not looked at here; transformers reports what they lack
    revision = init_kwargs.get("revision")
    if not trains:
        check_reward_model(local_folder(model, revision))
        return
    try:
        folder = local_folder(model, revision)
    except TrlPafoError:  # the trainer says more when it loads the model
        return
    if adapter_config(folder) is not None:
        raise ConfigError(
            f"{model} is an adapter; loaded by name, it would be frozen. To train it further, give `model` the "
            "PeftModel: PeftModel.from_pretrained(base, folder, is_trainable=True)."
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{model} is no saved model: it holds no config.json. Give a Hub id, or a folder that a model was saved in."
        )
    gaps = gaps_of_base(str(folder))
    if gaps is None:
        return
    missing = [name for name in gaps.missing if name not in gaps.of_head]
    if missing:
        raise ConfigError(
            f"{model} holds no weights for {name_some(missing)}: they would be random, not just a new reward head. Name a "
            "complete pretrained model."
        )
    if gaps.misfits and not init_kwargs.get("ignore_mismatched_sizes"):
        raise ConfigError(
            f"{model} holds weights of another shape for {name_some(gaps.misfits)} than a reward model of one label has. To get a "
            "new head instead, pass model_init_kwargs={'ignore_mismatched_sizes': True}."
        )


def gaps_of_base(source: str, revision: str | None = None) -> Gaps | None:
    """What a base lacks of a reward model; `None` where only loading it can show that."""
    try:
        folder = local_folder(source, revision)
        with as_config_error(folder):
            return find_gaps(folder, AutoConfig.from_pretrained(folder, num_labels=1, trust_remote_code=False))
    except TrlPafoError:
        return None


def is_of_head(name: str, model: Any) -> bool:
    """Whether a weight belongs to what a task puts on a pretrained model: its head, or the pooler below it."""
    backbone = "" if model.base_model is model else f"{model.base_model_prefix}."
    return not name.startswith(backbone) or "pooler" in name.split(".")


def name_some(names: list[str]) -> str:
    """Names for a sentence."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


@contextmanager
def complete_weights() -> Iterator[None]:
    """Models that are loaded inside have all their weights on every process.

    What a launcher sets up for the student acts on every `from_pretrained`: ZeRO-3 cuts the weights up at once, and FSDP with
    `cpu_ram_efficient_loading` leaves processes other than the first without some or all of them (which, differs between
    versions of transformers) until the student is wrapped. A teacher would be scored with that.
    """
    from transformers.integrations import deepspeed

    config = deepspeed._hf_deepspeed_config_weak_ref and deepspeed._hf_deepspeed_config_weak_ref()
    efficient = os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING")
    deepspeed.unset_hf_deepspeed_config()
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)
        if efficient is None:
            del os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"]
        else:
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = efficient


def _check_labels(config: Any, name: str) -> None:
    num_labels = getattr(config, "num_labels", None)
    if num_labels != 1:
        raise ConfigError(
            f"{name} has num_labels={num_labels}; a reward model has one. Train it with RewardTrainer, or load it with num_labels=1."
        )


def _shapes_in(*files: Path) -> _Shapes:
    """Names and shapes of the weights in safetensors files."""
    shapes: _Shapes = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            shapes |= {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


@contextmanager
def as_config_error(folder: Path) -> Iterator[None]:
    """What the libraries raise inside becomes one error that names the folder and the fix."""
    try:
        yield
    except TrlPafoError:
        raise
    except Exception as error:  # of a damaged configuration anything: peft asks a model how it generates, torch asserts
        raise ConfigError(
            f"No reward model can be loaded from {folder}: {reason(error)}. Use another model, or save it again."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers neither shows a bar nor reports what is missing: the caller does."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    hook = logging.set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{**kwargs, "disable": True}))
    try:
        yield
    finally:
        logging.set_tqdm_hook(hook)
        logging.set_verbosity(level)
