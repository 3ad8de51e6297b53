"""A preference pair as one row [prefix | chosen rest | rejected rest]: what both responses share is computed once.

It knows token ids and models of transformers, and neither texts, trainers nor teachers.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "choose_sharing":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trl_pafo.prefix_sharing.choice import choose_sharing

    return choose_sharing
