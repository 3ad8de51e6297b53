"""Models on the Hub of Hugging Face, with their cards. It knows no method.

The names are imported where they are first used, as in `trl_pafo`.
"""

from importlib import import_module
from typing import Any

_HOMES = {"Card": "card", "HubError": "upload", "HubMixin": "trainer_mixin", "upload_model": "upload"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
