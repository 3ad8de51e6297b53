"""Values of options as JSON that is the same in every process, for digests."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from trl_pafo.storage.files import digest_of_files

# Their order means nothing.
_SETS = ("lora_target_modules", "lora_modules_to_save", "lora_target_parameters", "optim_target_modules")
# Read by the training: another content under the same name is another option.
_FILES = ("chat_template_path", "deepspeed")


def canonical(value: Any) -> Any:
    """A value of an option as JSON, the same in every process."""
    if isinstance(value, Enum):
        return canonical(value.value)
    if isinstance(value, np.generic):
        return canonical(value.item())
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 3 epochs are 3.0 epochs
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(canonical(key)): canonical(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    if isinstance(value, (set, frozenset)):
        return sorted(map(canonical, value), key=json.dumps)
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return values_of(value, lambda name: True)
    if hasattr(value, "to_dict") and not isinstance(value, type):
        return canonical(value.to_dict())
    if hasattr(value, "__qualname__"):  # a class or a function: as printed it may hold an address
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "__dict__"):
        return {"class": canonical(type(value)), **canonical(vars(value))}
    return str(value).removeprefix("torch.")  # a dtype is the same by name


def values_of(options: Any, wanted: Callable[[str], bool]) -> dict[str, Any]:
    found = {}
    for field in fields(options):
        name = field.name
        value = canonical(getattr(options, name))
        if name in _SETS and isinstance(value, list):
            value = sorted(value, key=json.dumps)
        if name.startswith("_") or not wanted(name) or (not value and value == default_of(field)):
            continue
        found[name] = value
        if name in _FILES and isinstance(value, str) and Path(value).exists():
            found[f"{name} holds"] = digest_of_files(Path(value))
    return found


def default_of(field: Field) -> Any:
    """The default of a dataclass field, as [`canonical`] gives values."""
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return canonical(default) if default is not MISSING else MISSING
