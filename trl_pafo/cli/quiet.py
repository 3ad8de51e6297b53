"""Keep other libraries' banners out of the terminal, so that our own progress can be read; say what the readers of data read."""

import logging
import os
import warnings

# Read by the libraries as they are imported, which is seconds later or, for help, never. What the user has set stays.
_QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def quiet() -> None:
    """Silence load reports, per-dataset bars and deprecation notes of the libraries underneath; errors stay.

    How many rows each reader of data has read, and what it leaves out, is said.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("deepspeed", "DeepSpeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # To standard error: the output may be a result.
    sources = logging.getLogger("trl_pafo.sources")
    sources.setLevel(logging.INFO)
    sources.handlers[:] = [logging.StreamHandler()]
