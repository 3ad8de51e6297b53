"""Source name -> preference pairs in the one schema."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.typed_users import AnsweredPrompt, Population, make_splits
from trl_pafo.errors import ConfigError
from trl_pafo.storage.files import digest_of_files

# What the datasets library writes into a folder of `save_to_disk` when somebody works with it.
_CACHES = ("cache-*", "tmp*", ".*")
_USERS = {"train_users", "test_users"}
_PAIRS = _USERS | {"pairs_per_user", "context_pairs", "test_prompt_share"}
_POPULATION = _PAIRS | {"majority", "minority", "minority_ratio", "taste_mix", "label_noise"}
_CUT = {"minority_quantile", "minority_threshold"}
# Options that a source looks at, beside those that every one does.
_USED: dict[str, set[str]] = {
    "styles": _POPULATION,
    "dsp": _POPULATION | {"data_path", "max_words"},
    "swissmetro": _USERS | {"data_path"},
    "personal_llm": _PAIRS | _CUT | {"data_path"},
    "prism": _USERS | {"data_path", "group_by", "minority"},
    "ukp_convarg": _CUT | {"data_path"},
    "files": _CUT | {"data_path", "test_data_path"},
}


def load_source(data: DataArguments, context_pairs: int | None = None) -> DatasetDict:
    """The training and test pairs that the options ask for.

    Args:
        data ([`~trl_pafo.data.sources.arguments.DataArguments`]):
            The options.
        context_pairs (`int`, *optional*):
            Earlier pairs of each user where `data` says nothing.

    Raises:
        ConfigError: As [`check_source`].
        DataError: If the data cannot be used.
    """
    check_source(data)
    return SOURCES[data.source](data if data.context_pairs is not None else replace(data, context_pairs=context_pairs))


def check_source(data: DataArguments) -> None:
    """Raise [`ConfigError`] if the source is unknown, an option has no effect on it, or one that it needs is missing."""
    if data.source not in SOURCES:
        raise ConfigError(f"Unknown source {data.source!r}; choose one of {', '.join(SOURCES)}.")
    unused = unused_options(data)
    if unused:
        others = [source for source, used in _USED.items() if set(unused) <= used]
        instead = f", or choose another --source ({', '.join(others)})" if others else ""
        raise ConfigError(
            f"{', '.join(f'--{name}' for name in unused)}: no effect on the source {data.source!r}. Leave it out{instead}."
        )
    if data.source not in ("styles", "swissmetro"):
        _path(data)
    if data.source == "prism" and not data.group_by:
        raise ConfigError("The source 'prism' makes its groups from the survey: name a field with --group_by, such as gender.")
    if _by_type(data) and not (data.majority and data.minority):
        raise ConfigError("The source 'personal_llm' takes --majority and --minority together (types of user), or neither.")


def data_identity(data: DataArguments) -> dict[str, str]:
    """Digests of the files that a source reads, by what names them: a path may hold other rows tomorrow.

    A dataset of the Hub is known by its name alone.
    """
    paths = {name: getattr(data, name) for name in ("data_path", "test_data_path") if getattr(data, name)}
    if data.source == "styles":
        from trl_pafo.data.sources.styles import CORPUS

        paths["styles"] = CORPUS
    elif data.source == "swissmetro" and not data.data_path:
        from trl_pafo.data.sources.swissmetro import data_file

        paths["swissmetro"] = data_file()
    found = {name: Path(path) for name, path in paths.items()}
    return {name: digest_of_files(path, but=_CACHES) for name, path in found.items() if path.exists()}


def unused_options(data: DataArguments) -> list[str]:
    """Options that were given another value than their default and that the source does not look at."""
    used = _POPULATION | {"data_path"} if _by_type(data) else _USED[data.source]
    used = used | {"source", "population_seed", "validation_share"}
    return [f.name for f in fields(DataArguments) if f.name not in used and getattr(data, f.name) != f.default]


def _by_type(data: DataArguments) -> bool:
    """Whether users of `personal_llm` hold types, and not weights."""
    return data.source == "personal_llm" and bool(data.majority or data.minority)


def _path(data: DataArguments) -> str:
    if not data.data_path:
        raise ConfigError(f"The source {data.source!r} reads a file: give its path with --data_path.")
    return data.data_path


def _population(data: DataArguments, default: Population) -> Population:
    """The users that the options ask for; `None` leaves the default."""
    return replace(
        default,
        majority=data.majority or default.majority,
        minority=data.minority or default.minority,
        minority_ratio=data.minority_ratio,
        train_users=default.train_users if data.train_users is None else data.train_users,
        test_users=default.test_users if data.test_users is None else data.test_users,
        pairs_per_user=data.pairs_per_user,
        context_pairs=default.context_pairs if data.context_pairs is None else data.context_pairs,
        test_prompt_share=data.test_prompt_share,
        taste_mix=data.taste_mix,
        label_noise=data.label_noise,
        seed=data.population_seed,
    )


def _typed(data: DataArguments, prompts: list[AnsweredPrompt], default: Population) -> DatasetDict:
    return make_splits(prompts, _population(data, default))


def _styles(data: DataArguments) -> DatasetDict:
    from trl_pafo.data.sources.styles import load_styles

    return _typed(data, load_styles(), Population(majority=["thorough"], minority=["playful"]))


def _dsp(data: DataArguments) -> DatasetDict:
    from trl_pafo.data.sources.dsp import dsp_population, load_dsp

    return _typed(data, load_dsp(_path(data), data.max_words), dsp_population())


def _swissmetro(data: DataArguments) -> DatasetDict:
    from trl_pafo.data.sources.swissmetro import load_swissmetro

    return load_swissmetro(data.data_path, train_users=data.train_users, test_users=data.test_users, seed=data.population_seed)


def _files(data: DataArguments) -> DatasetDict:
    from trl_pafo.data.sources.files import load_files

    return load_files(_path(data), data.test_data_path, seed=data.population_seed, **_cut(data))


def _ukp_convarg(data: DataArguments) -> DatasetDict:
    from trl_pafo.data.sources.ukp_convarg import load_ukp_convarg

    return load_ukp_convarg(_path(data), seed=data.population_seed, **_cut(data))


def _prism(data: DataArguments) -> DatasetDict:
    from trl_pafo.data.sources.prism import load_prism

    return load_prism(
        _path(data),
        str(data.group_by),
        data.minority,
        train_users=data.train_users,
        test_users=data.test_users,
        seed=data.population_seed,
    )


def _personal_llm(data: DataArguments) -> DatasetDict:
    from trl_pafo.data.sources.personal_llm import load_personal_llm, load_personal_llm_types

    if _by_type(data):
        return load_personal_llm_types(_path(data), _population(data, Population(data.majority or (), data.minority or ())))
    population = _population(data, Population(majority=[""], minority=[""]))
    return load_personal_llm(
        _path(data),
        train_users=population.train_users,
        test_users=population.test_users,
        pairs_per_user=population.pairs_per_user,
        context_pairs=population.context_pairs,
        test_prompt_share=population.test_prompt_share,
        seed=population.seed,
        **_cut(data),
    )


def _cut(data: DataArguments) -> dict[str, Any]:
    """Where the support rate makes the groups."""
    return {"minority_quantile": data.minority_quantile, "minority_threshold": data.minority_threshold}


SOURCES: dict[str, Callable[[DataArguments], DatasetDict]] = {
    "styles": _styles,
    "dsp": _dsp,
    "swissmetro": _swissmetro,
    "personal_llm": _personal_llm,
    "prism": _prism,
    "ukp_convarg": _ukp_convarg,
    "files": _files,
}
