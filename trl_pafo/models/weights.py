"""Which weights of a model its files hold, told by their headers: what they lack, transformers would draw at random."""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig
from transformers.utils import logging

from trl_pafo.errors import ConfigError, TrlPafoError
from trl_pafo.models.safe_loading import SAFELY, reason, weight_files

Shapes = dict[str, list[int]]
"""Shape of each weight by its name."""


class Gaps(NamedTuple):
    """
    What a checkpoint lacks of a model.

    Parameters:
        missing (`list[str]`):
            Weights of the model that are in no file.
        misfits (`list[str]`):
            Weights that have another shape there.
        of_head (`list[str]`):
            Those of both that belong to the reward head, or to the pooler below it: what a new head is made of.
    """

    missing: list[str]
    misfits: list[str]
    of_head: list[str]


def find_gaps(
    folder: Path,
    config: Any,
    added: Mapping[str, list[int]] | None = None,
    architectures: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
) -> Gaps:
    """What the files of a checkpoint lack of the model that they would be loaded into. Headers alone are read.

    transformers is asked, with empty tensors of the names and shapes in the files: it knows which weights are tied, renamed, or
    not needed. Names of quantized weights are a matter of their library, so there only the head is looked for.

    Args:
        folder (`Path`):
            Folder of a checkpoint.
        config ([`~transformers.PretrainedConfig`]):
            Configuration of the model.
        added (`dict[str, list[int]]`, *optional*):
            Names and shapes of weights that an adapter brings, under the names of the model.
        architectures (*optional*):
            From the class of a configuration to that of the model; by default sequence classification.

    Raises:
        ConfigError: If transformers knows no such model.
    """
    if type(config) not in architectures:
        task = "causal language" if architectures is MODEL_FOR_CAUSAL_LM_MAPPING else "sequence classification"
        raise ConfigError(f"{folder} is of type {config.model_type}, of which transformers has no {task} model. Name another.")
    model_class, config = architectures[type(config)], copy.deepcopy(config)
    is_quantized = getattr(config, "quantization_config", None) is not None
    if is_quantized:
        del config.quantization_config
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes_in(*weight_files(folder)).items()}
    with _quiet(), whole_weights(), torch.random.fork_rng(devices=[]):
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


def check_language_model(folder: Path) -> None:
    """Raise where a causal language model would be loaded with weights drawn at random; none is read.

    Raises:
        ConfigError: If weights are missing, or it cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        gaps = find_gaps(folder, config, architectures=MODEL_FOR_CAUSAL_LM_MAPPING)
    except TrlPafoError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"No language model can be loaded from {folder}: {reason(error)}. Name another.") from error
    if gaps.missing:
        raise ConfigError(
            f"{folder} holds no weights for {name_some(gaps.missing)}: they would be drawn at random. Name a causal language model, with "
            "its language model head."
        )


def is_of_head(name: str, model: Any) -> bool:
    """Whether a weight belongs to what a task puts on a pretrained model: its head, or the pooler below it."""
    backbone = "" if model.base_model is model else f"{model.base_model_prefix}."
    return not name.startswith(backbone) or "pooler" in name.split(".")


def shapes_in(*files: Path) -> Shapes:
    """Names and shapes of the weights in safetensors files."""
    shapes: Shapes = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            shapes |= {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def name_some(names: list[str], most: int = 4) -> str:
    """Names for a sentence."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def whole_weights() -> Iterator[None]:
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


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers neither shows a bar nor reports what is missing: whoever asks says it."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    hook = logging.set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{**kwargs, "disable": True}))
    try:
        yield
    finally:
        logging.set_tqdm_hook(hook)
        logging.set_verbosity(level)
