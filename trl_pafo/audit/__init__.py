"""What a dataset can give, before anything is trained: counts, accuracy by group, annotator noise, and what teachers of their own would add.

It trains nothing but probes, and must not know of trainers or of the folders of runs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl_pafo.audit.audit import run_audit, write_audit
    from trl_pafo.audit.options import AuditArguments

__all__ = ["AuditArguments", "run_audit", "write_audit"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'options' if name == 'AuditArguments' else 'audit'}"), name)
