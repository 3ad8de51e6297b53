"""Keep other libraries' banners out of the terminal, so that our own progress can be read."""

import logging
import os
import warnings


def quiet() -> None:
    """Silence load reports, per-dataset bars and deprecation notes of the libraries underneath; errors stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
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
