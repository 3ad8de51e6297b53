"""The stages of a run: data, baselines, teachers, student, evaluation, publishing. It knows no command line.

The names are imported where they are first used, as in `trl_pafo`.
"""

from importlib import import_module
from typing import Any

_HOMES = {"Run": "run", "load_prepared": "prepare", "push_run": "publish"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
