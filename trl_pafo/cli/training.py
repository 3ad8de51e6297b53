"""The flags of the commands that train, and the data that they name."""

from typing import Any

EPILOG = (
    "The flags of TRL's RewardConfig and of transformers' TrainingArguments are taken as well: --output_dir, --learning_rate, "
    "--num_train_epochs, --per_device_train_batch_size, --max_length, --use_cpu and many more. `%(prog)s --help-all` lists them."
)


def training_parser(
    before: tuple[type, ...], after: tuple[type, ...], prog: str | None, short: bool, config: type | None = None
) -> Any:
    """A parser of PAFOConfig's flags, or those of a class derived from it, between those of other dataclasses.

    With `short`, the flags of the training that are not ours are left out, which torch must be loaded for; to print help, not to
    parse.
    """
    from trl import TrlParser

    if short:
        from trl_pafo.trainer.options import PAFOOptions as Options

        page = {"usage": "%(prog)s [--config FILE.yaml] [flags]", "epilog": EPILOG}
    else:
        from trl_pafo.trainer.config import PAFOConfig as Options  # type: ignore[assignment]

        page = {}
    parser = TrlParser((*before, config or Options, *after), prog=prog, **page)  # type: ignore[arg-type]
    for action in parser._actions:
        if action.dest == "report_to":
            action.nargs = "+"  # as YAML and Python do, where TRL's parser takes one value
    parser.set_defaults_with_config(lora_task_type="SEQ_CLS")  # else an adapter loses its reward head
    return parser


def load_named(script_args: Any) -> Any:
    """The dataset that TRL's ScriptArguments name; [`DataError`] if it cannot be loaded."""
    from datasets import load_dataset

    from trl_pafo.errors import DataError

    source = script_args.dataset_name
    try:
        return load_dataset(source, name=script_args.dataset_config, streaming=script_args.dataset_streaming)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"--dataset_name {source} cannot be loaded ({' '.join(str(error).split())}). Give a Hub id or a folder; `trl-pafo "
            "prepare --data_path FILE` makes one from a file."
        ) from error


def check_splits(dataset: Any, *splits: str) -> None:
    """Raise [`ConfigError`] if a split is missing."""
    from trl_pafo.errors import ConfigError

    for split in splits:
        if split not in dataset:
            raise ConfigError(f"The dataset has no split {split!r}; it has {', '.join(dataset)}.")
