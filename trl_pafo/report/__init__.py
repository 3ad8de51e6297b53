"""What a person looks at: the table and verdict lines of a run, its page with pictures, and several runs compared.

It reads what runs and evaluations left on disk, and must not know how a run is made.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl_pafo.report.page import write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trl_pafo.report import page

    return getattr(page, name)
