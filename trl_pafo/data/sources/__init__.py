"""Where preference pairs come from. Each source ends in the one schema: `prompt`, `chosen`, `rejected`, `user`, `group`
and `support_rate`, in a `DatasetDict` whose `test` split shares neither a user nor a prompt with `train`. It knows no model.

The names are imported where they are first used, as in `trl_pafo`.
"""

from importlib import import_module
from typing import Any

_HOMES = {"DataArguments": "arguments", "load_source": "registry"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
