"""Modules for Hugging Face `evaluate`: the numbers of [`trl_pafo.metrics`] behind `load`, `add_batch` and `compute`."""

from pathlib import Path
from typing import Any

from trl_pafo.errors import ConfigError

NAMES = ("group_fairness", "pareto_verdict", "user_fairness")

__all__ = ["NAMES", "load", "path"]


def path(name: str) -> str:
    """The installed folder of a module, one of `NAMES`, for `evaluate.load`; [`ConfigError`] if there is no such module."""
    if name not in NAMES:
        raise ConfigError(f"There is no module {name!r}; choose one of {', '.join(NAMES)}.")
    return str(Path(__file__).parent / name)


def load(name: str, **kwargs: Any) -> Any:
    """`evaluate.load(path(name), **kwargs)`, with what it takes: `num_process`, `process_id`, `experiment_id`, `cache_dir`,
    `keep_in_memory`, ...

    Raises:
        ConfigError: If there is no such module, or `evaluate` is not installed.
    """
    folder = path(name)
    try:
        import evaluate
    except ImportError as error:
        raise ConfigError("These modules need Hugging Face evaluate: pip install trl-pafo[evaluate].") from error
    return evaluate.load(folder, **kwargs)
