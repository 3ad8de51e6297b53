"""Where a saved model is, and what is read of it: weights in safetensors and JSON. No pickle, and no code that comes with it."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from trl_pafo.errors import ConfigError, TeacherError
from trl_pafo.storage.files import digest_of_files

SAFELY: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
"""Keyword arguments of every `from_pretrained` that reads weights. Without them transformers asks at a terminal whether to run a
model's code, and falls back on pickles."""

ADAPTER_CONFIG = "adapter_config.json"
"""File that makes a folder one of an adapter."""

MODEL_FILES = (
    *("*.safetensors", "*.gguf", "config.json", ADAPTER_CONFIG),
    *("tokenizer*", "*.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
)
"""Files of a saved model that decide what it reads and what it answers."""

_INDEX = ".safetensors.index.json"
_FEWEST_WORDS = 10  # a tokenizer that transformers makes of nothing has a few that are not special


def local_folder(source: str, revision: str | None = None) -> Path:
    """The folder of a saved model: the one that is named, or the Hub's snapshot (safetensors only).

    Raises:
        TeacherError: If there is no such folder and no such repository.
        ConfigError: If its weights are no safetensors, see [`check_model_folder`].
    """
    patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
    folder = Path(source) if os.path.isdir(source) else _snapshot(source, revision, patterns)
    check_model_folder(folder)
    return folder


def check_found(source: str) -> None:
    """Raise [`TeacherError`] if there is no such folder and no such repository, of which no weights are fetched."""
    if not os.path.isdir(source):
        _snapshot(source, None, ["config.json", ADAPTER_CONFIG])


def _snapshot(source: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    from trl_pafo.models.base_models import WHEEL_MODELS

    if source in WHEEL_MODELS:
        raise ConfigError(
            f"{source} is a pretrained model, from which a training starts. It has no reward head, so that its rewards would be random. Train "
            f"it (`trl-pafo run` or `trl-pafo reward --model_name_or_path {source}`), and give the folder of the trained model."
        )
    if os.path.isfile(source):
        raise TeacherError(f"{source} is a file. Give the folder of the saved model: {Path(source).parent}.")
    try:
        others = ["consolidated*", "original/*"]  # the same weights in the format of another library
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns, ignore_patterns=others))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise TeacherError(f"No model is found at {source!r}: no such folder, and the Hub does not give it ({error}).") from error


def adapter_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of an adapter in a folder; `None` where there is something else."""
    path = folder / ADAPTER_CONFIG
    return read_config(path) if path.is_file() else None


def base_folder(adapter: Mapping[str, Any]) -> Path:
    """The folder of the base that the configuration of an adapter names.

    Raises:
        TeacherError, ConfigError: As [`local_folder`].
    """
    try:
        return local_folder(str(adapter.get("base_model_name_or_path")), adapter.get("revision"))
    except TeacherError as error:
        raise TeacherError(
            f"The base of the adapter is missing. {error} Correct `base_model_name_or_path` in its {ADAPTER_CONFIG}."
        ) from error


def load_config(folder: Path) -> Any:
    """The configuration of a saved reward model; that of an adapter is its base's, with one label."""
    adapter = adapter_config(folder)
    if adapter is None:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return AutoConfig.from_pretrained(base_folder(adapter), num_labels=1, trust_remote_code=False)


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer was saved in a folder."""
    return any(next(folder.glob(name), None) for name in ("tokenizer*", "vocab.*", "*.model"))


def read_tokenizer(source: str | Path, *, trust_remote_code: bool, **options: Any) -> PreTrainedTokenizerBase:
    """As [`~transformers.AutoTokenizer`] reads it.

    Where a folder holds none, transformers makes one of special tokens alone for many kinds of models: all words are then the unknown
    token, or nothing.

    Raises:
        ConfigError: If none is found or can be read, or it knows no words.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # whose message need not name the model; the Rust library raises nothing more particular
        raise ConfigError(
            f"No tokenizer can be loaded from {source}: {reason(error)}. Give a Hub id, or a folder that a model and its tokenizer were "
            "saved in."
        ) from error
    if len(tokenizer) - len(tokenizer.all_special_ids) < _FEWEST_WORDS:
        raise ConfigError(
            f"{source} holds no vocabulary, so every word would read the same. Save the tokenizer of the model there, beside its weights: "
            "tokenizer.save_pretrained."
        )
    return tokenizer  # type: ignore[no-any-return]


def load_saved_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a saved model, without code of its own.

    Raises:
        ConfigError: If it cannot be loaded so.
    """
    return read_tokenizer(folder, trust_remote_code=False)


def identity_of_folder(folder: Path) -> str:
    """Digest of all files that decide the answers of a saved model; an adapter answers with its base's weights too."""
    own = digest_of_files(folder, MODEL_FILES)
    adapter = adapter_config(folder)
    if adapter is None:
        return own
    return hashlib.sha256(f"{own} {identity_of_folder(base_folder(adapter))}".encode()).hexdigest()


def check_model_folder(folder: str | Path) -> None:
    """Raise [`ConfigError`] where a model, or an adapter and its base, would be read from anything but safetensors, or from files that are
    missing or damaged, or would bring code along.

    A folder without a configuration passes, and a base that is no folder is left to `from_pretrained` with [`SAFELY`].
    """
    folder = Path(folder)
    adapter = adapter_config(folder)
    if adapter is not None:
        _check_adapter_config(adapter, folder / ADAPTER_CONFIG)
        _check_weights(folder, [folder / "adapter_model.safetensors"])
        base = adapter.get("base_model_name_or_path")
        if isinstance(base, str) and os.path.isdir(base) and not folder.samefile(base):
            check_model_folder(base)
    elif (folder / "config.json").is_file():
        _check_weights(folder, weight_files(folder))


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load from the folder of a checkpoint: one, its shards, or whatever safetensors there are.

    Raises:
        ConfigError: If the configuration or the index names anything but safetensors in the folder.
    """
    named = str(read_config(folder / "config.json").get("transformers_weights") or "model.safetensors")
    if not named.endswith((".safetensors", _INDEX)):
        raise ConfigError(
            f"{folder / 'config.json'} names {named!r} as its weights, which are not safetensors. Leave `transformers_weights` out "
            "and save the model with save_pretrained."
        )
    index = folder / (named if named.endswith(_INDEX) else f"{named}.index.json")
    if index.name != named and (folder / named).is_file():
        return [folder / named]
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    shards = read_config(index).get("weight_map")
    names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else [""]
    bad = [name for name in names if not name.endswith(".safetensors") or Path(name).name != name]
    if bad:
        raise ConfigError(
            f"{index} names {bad[0]!r} as a shard; shards are safetensors beside it. Save the model again with save_pretrained."
        )
    return [folder / name for name in names]


def _check_weights(folder: Path, files: list[Path]) -> None:
    if not any(path.is_file() for path in files):
        raise ConfigError(
            f"{folder} holds no weights in safetensors. A pickle (pytorch_model.bin, adapter_model.bin) can run code when it is read, so it "
            "is not read. Save the model there with save_pretrained; if you trust where a pickle comes from, load it elsewhere first."
        )
    for path in files:
        try:
            with safe_open(path, framework="pt"):  # whose length is what its beginning says
                pass
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"No reward model can be loaded from {folder}: {path.name}: {reason(error)}. Use another model, or save it again."
            ) from error


def safe_init_kwargs(model: Any, init_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """`model_init_kwargs` for a trainer of TRL that loads its model by name: from safetensors, unless it says otherwise itself, by
    `{"use_safetensors": False}`. The folder is checked by [`check_model_folder`]; a model in memory is loaded already.
    """
    kwargs = {"use_safetensors": True, **(init_kwargs or {})}
    if isinstance(model, str) and kwargs["use_safetensors"] and "gguf_file" not in kwargs and Path(model).is_dir():
        check_model_folder(model)
    return kwargs


def reason(error: BaseException) -> str:
    """Why a library could not load something, as a part of a sentence."""
    if "trust_remote_code" in str(error):
        return (
            "it needs code that comes with it, which is not run here (trust_remote_code); only a training runs it, where "
            "--trust_remote_code true asks for it"
        )
    return " ".join(str(error).split())[:400].rstrip(".")


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file of a saved model.

    Raises:
        ConfigError: If it is not a JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Save the model again.") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} is not a JSON object. Save the model again.")
    return config


def _check_adapter_config(config: dict[str, Any], path: Path) -> None:
    # Versions of peft import modules by these names, whatever they are.
    mapping = config.get("auto_mapping") or {}
    library = str(mapping.get("parent_library") or "transformers") if isinstance(mapping, dict) else "?"
    if config.get("megatron_config") or library.split(".")[0] not in ("transformers", "peft", "trl"):
        raise ConfigError(
            f"{path} asks for modules of other libraries ({'megatron_config' if config.get('megatron_config') else library}), "
            "which would be imported by name. Save the adapter with `task_type` and without `megatron_config`."
        )
