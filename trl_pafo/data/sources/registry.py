"""Source name -> preference pairs in the one schema."""

from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path

from datasets import DatasetDict

from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.errors import ConfigError
from trl_pafo.storage.files import digest_of_files

# What the datasets library writes into a folder of `save_to_disk` when somebody works with it.
_CACHES = ("cache-*", "tmp*", ".*")
_USERS = {"train_users", "test_users"}
_PAIRS = _USERS | {"pairs_per_user", "context_pairs", "test_prompt_share"}
_POPULATION = _PAIRS | {"majority", "minority", "minority_ratio", "taste_mix", "label_noise"}
_CUT = {"minority_quantile", "minority_threshold"}

SOURCES: dict[str, set[str]] = {
    "styles": _POPULATION | {"validation_users"},
    "dsp": _POPULATION | {"data_path", "max_words", "validation_users"},
    "swissmetro": _USERS | {"data_path", "validation_users"},
    "personal_llm": _PAIRS | _CUT | {"data_path"},
    "prism": _USERS | {"data_path", "group_by", "minority", "validation_users"},
    "polis": _PAIRS | {"data_path", "topic", "num_clusters", "hold_out", "validation_users"},
    "files": _CUT
    | {
        "data_path",
        "test_data_path",
        "columns",
        "preferred_values",
        "describe",
        "hold_out",
        "min_pairs",
        "context_pairs",
        "test_prompt_share",
    },
}
"""The options that each source looks at, beside those that every one does. A source is the function `load` of the module here that
has its name: from [`DataArguments`] to `train`, `test` and, of those that have users to spare, `validation`, in the one schema."""


def load_source(data: DataArguments, context_pairs: int = 1) -> DatasetDict:
    """The training and test pairs that the options ask for.

    Args:
        data ([`~trl_pafo.data.sources.arguments.DataArguments`]):
            The options.
        context_pairs (`int`, *optional*, defaults to `1`):
            Earlier pairs of each user where `data` says nothing.

    Returns:
        [`~datasets.DatasetDict`]: As the source has them, with `prompt`, `chosen`, `rejected`, `user`, `group` and `support_rate`. They share
        no user and no prompt; the rows of a user stand together, in the order of time.

    Raises:
        ConfigError: As [`check_source`], or if the data does not allow what the options ask for.
        DataError: If the data cannot be used.
    """
    check_source(data)
    source = import_module(f"trl_pafo.data.sources.{data.source}")
    splits: DatasetDict = source.load(data if data.context_pairs is not None else replace(data, context_pairs=context_pairs))
    return splits


def check_source(data: DataArguments) -> None:
    """Raise [`ConfigError`] if the source is unknown, an option has no effect on it, or one that it needs is missing."""
    if data.source not in SOURCES:
        raise ConfigError(f"Unknown source {data.source!r}; choose one of {', '.join(SOURCES)}.")
    unused = unused_options(data)
    if unused:
        others = [source for source, used in SOURCES.items() if set(unused) <= used]
        inferred = " with --infer_groups" if data.infer_groups else ""
        instead = f", or choose another --source ({', '.join(others)})" if others else ""
        raise ConfigError(
            f"{', '.join(f'--{name}' for name in unused)}: no effect on the source {data.source!r}{inferred}. Leave it out{instead}."
        )
    if "data_path" in SOURCES[data.source] and data.source != "swissmetro" and not data.data_path:
        raise ConfigError(f"The source {data.source!r} reads a file: give its path with --data_path.")
    if data.source == "prism" and not data.group_by and not data.infer_groups:
        raise ConfigError(
            "The source 'prism' makes its groups from the survey: name a field with --group_by, such as gender, or pass --infer_groups."
        )


def unused_options(data: DataArguments) -> list[str]:
    """Options that were given another value than their default and that the source does not look at."""
    used = SOURCES[data.source] | {"source", "population_seed", "validation_share", "infer_groups"}
    if data.infer_groups:
        used = used - _CUT - {"num_clusters"} - ({"group_by", "minority"} if data.source == "prism" else set())
    return [f.name for f in fields(DataArguments) if f.name not in used and getattr(data, f.name) != f.default]


def data_identity(data: DataArguments) -> dict[str, str]:
    """Digests of the files that a source reads, by what names them: a path may hold other rows tomorrow.

    A dataset of the Hub is known by its name alone.
    """
    paths = {name: Path(getattr(data, name)) for name in ("data_path", "test_data_path") if getattr(data, name)}
    if data.source == "styles":
        from trl_pafo.data.sources.styles import CORPUS

        paths["styles"] = CORPUS
    elif data.source == "swissmetro" and not data.data_path:
        from trl_pafo.data.sources.swissmetro import data_file

        paths["swissmetro"] = data_file()
    return {name: digest_of_files(path, but=_CACHES) for name, path in paths.items() if path.exists()}
