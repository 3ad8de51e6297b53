"""Keep other libraries' banners out of the terminal, so that our own progress can be read."""

import logging
import os
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).parents[1])
_format_warning = warnings.formatwarning


def quiet() -> None:
    """Silence load reports, per-dataset bars and deprecation notes of the libraries underneath; errors stay.

    What was read, what was left out and what is warned of is said, each in a line.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads of torch that wait for each other sleep. Else they keep the cores from what they wait for, wherever others work beside.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.filterwarnings("ignore", category=FutureWarning)
    # The Trainer turns the bars of the Hub on again after a push, and is told that the environment turned them off.
    warnings.filterwarnings("ignore", message="Cannot enable progress bars", category=UserWarning)
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("deepspeed", "DeepSpeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if logging.lastResort is not None:
        logging.lastResort.setLevel(logging.INFO)
    for name in ("trl_pafo.data.sources", "trl_pafo.data.attaching"):
        logging.getLogger(name).setLevel(logging.INFO)
    warnings.formatwarning = _warning_line


def _warning_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """Our own warnings as sentences, those of others with their place."""
    if filename.startswith(_PACKAGE):
        return f"{message}\n"
    return _format_warning(message, category, filename, lineno, line)
