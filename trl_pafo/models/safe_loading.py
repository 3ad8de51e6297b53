"""What is read of a saved model: weights in safetensors and JSON. No pickle, and no code that comes with it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from trl_pafo.errors import ConfigError

SAFELY: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
"""Keyword arguments of every `from_pretrained` that reads weights; said outright, as without them transformers asks at a terminal
whether to run a model's code, and falls back on pickles."""

ADAPTER_CONFIG = "adapter_config.json"
"""File that makes a folder one of an adapter."""

MODEL_FILES = (
    *("*.safetensors", "*.gguf", "config.json", ADAPTER_CONFIG),
    *("tokenizer*", "*.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
)
"""Files of a saved model that decide what it reads and what it answers."""

_INDEX = ".safetensors.index.json"
# What PyTorch, and older versions of the libraries, write weights to; a folder of a Trainer has others, which nobody reads here.
_PICKLES = ("pytorch_model*.bin", "adapter_model*.bin", "model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

_CONVERT_MODEL = "transformers.{}.from_pretrained({!r}).save_pretrained(NEW_FOLDER)"
_CONVERT_ADAPTER = (
    'safetensors.torch.save_file(torch.load("adapter_model.bin", weights_only=True), "adapter_model.safetensors"), then remove the '
    "first file"
)


def check_model_folder(folder: str | Path) -> None:
    """Raise where a model, or an adapter and its base, would be read from anything but safetensors, or would bring code along.

    A folder without a configuration is none of a model, and a base that is no folder is left to `from_pretrained` with
    [`SAFELY`].

    Args:
        folder (`str` or `Path`):
            Folder of a checkpoint or an adapter.

    Raises:
        ConfigError: If its weights are pickles, missing or not whole, or its configuration asks for something that could run code.
            The message says how to convert the weights.
    """
    folder = Path(folder)
    adapter = folder / ADAPTER_CONFIG
    if adapter.is_file():
        config = read_config(adapter)
        _check_adapter_config(config, adapter)
        _need_safetensors(folder, folder / "adapter_model.safetensors", _CONVERT_ADAPTER)
        _check_whole(folder / "adapter_model.safetensors")
        base = config.get("base_model_name_or_path")
        if isinstance(base, str) and Path(base).is_dir() and Path(base).resolve() != folder.resolve():
            check_model_folder(base)
    elif (folder / "config.json").is_file():
        config = read_config(folder / "config.json")
        named = config.get("transformers_weights")
        if named is not None and not str(named).endswith((".safetensors", _INDEX)):
            raise ConfigError(
                f"{folder / 'config.json'} names {named!r} as its weights, which are not safetensors. Leave `transformers_weights` out "
                "and save the model with save_pretrained."
            )
        indices = sorted(folder.glob(f"*{_INDEX}"))
        for index in indices:
            _check_index(index)
        found = indices or sorted(folder.glob("*.safetensors"))
        _need_safetensors(folder, found[0] if found else None, _CONVERT_MODEL.format(_architecture(config), str(folder)))
        for path in weight_files(folder):
            _check_whole(path)


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load from the folder of a checkpoint, there or not."""
    named = str(read_config(folder / "config.json").get("transformers_weights") or "model.safetensors")
    if (folder / named).is_file() and not named.endswith(".json"):
        return [folder / named]
    index = folder / (named if named.endswith(".json") else f"{named}.index.json")
    shards = read_config(index)["weight_map"].values() if index.is_file() else []
    return [folder / name for name in sorted(set(shards))]


def _check_whole(weights: Path) -> None:
    try:
        with safe_open(weights, framework="pt"):
            pass  # its header says how long it has to be
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"The weights of {weights.parent} are not whole: {weights.name} is missing or broken ({reason(error)}). Save or download "
            "the model again."
        ) from error


def safe_init_kwargs(model: Any, init_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """`model_init_kwargs` for a trainer of TRL that loads its model by name: from safetensors, unless it says otherwise itself.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            What the trainer is given. A model in memory is loaded already.
        init_kwargs (`Mapping[str, Any]`, *optional*):
            What was asked for; `{"use_safetensors": False}` asks for pickles.

    Raises:
        ConfigError: As [`check_model_folder`].
    """
    kwargs = {"use_safetensors": True, **(init_kwargs or {})}
    if isinstance(model, str) and kwargs["use_safetensors"] and "gguf_file" not in kwargs and Path(model).is_dir():
        check_model_folder(model)
    return kwargs


def reason(error: Exception) -> str:
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
        ConfigError: If it is no JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Save the model again.") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} is no JSON object. Save the model again.")
    return config


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    return name if isinstance(name, str) and name.isidentifier() else "AutoModelForSequenceClassification"


def _need_safetensors(folder: Path, weights: Path | None, convert: str) -> None:
    if weights is not None and weights.is_file():
        return
    pickles = sorted({path.name for pattern in _PICKLES for path in folder.glob(pattern)})
    if pickles:
        raise ConfigError(
            f"The weights in {folder} are a pickle ({pickles[0]}), which can run code when it is read, so it is not read. Convert them "
            f"to safetensors, if you trust where they come from: {convert}."
        )
    raise ConfigError(f"{folder} holds no weights in safetensors. Save the model there with save_pretrained.")


def _check_index(index: Path) -> None:
    shards = read_config(index).get("weight_map")
    names = set(map(str, shards.values())) if isinstance(shards, dict) else {""}
    bad = sorted(name for name in names if not name.endswith(".safetensors") or Path(name).name != name)
    if bad:
        raise ConfigError(
            f"{index} names {bad[0]!r} as a shard; shards are safetensors beside it. Save the model again with save_pretrained."
        )


def _check_adapter_config(config: dict[str, Any], path: Path) -> None:
    # Versions of peft import modules by these names, whatever they are.
    mapping = config.get("auto_mapping") or {}
    library = str(mapping.get("parent_library") or "transformers") if isinstance(mapping, dict) else "?"
    if config.get("megatron_config") or library.split(".")[0] not in ("transformers", "peft", "trl"):
        raise ConfigError(
            f"{path} asks for modules of other libraries ({'megatron_config' if config.get('megatron_config') else library}), which "
            "would be imported by name. Save the adapter with `task_type` and without `megatron_config`."
        )
