"""Source name -> preference pairs in the one schema."""

from collections.abc import Callable
from dataclasses import replace

from datasets import DatasetDict

from trl_pafo.arguments import DataArguments
from trl_pafo.errors import ConfigError
from trl_pafo.sources.typed_users import AnsweredPrompt, Population, make_splits


def load_source(data: DataArguments) -> DatasetDict:
    """The training and test pairs that the options ask for.

    Raises:
        ConfigError: If the source is unknown, or needs a `data_path` that was not given.
        DataError: If the data cannot be used.
    """
    if data.source not in SOURCES:
        raise ConfigError(f"Unknown source {data.source!r}; choose one of {', '.join(SOURCES)}.")
    return SOURCES[data.source](data)


def _path(data: DataArguments) -> str:
    if not data.data_path:
        raise ConfigError(f"The source {data.source!r} reads a file: give its path with --data_path.")
    return data.data_path


def _typed(data: DataArguments, prompts: list[AnsweredPrompt], default: Population) -> DatasetDict:
    population = replace(
        default,
        majority=data.majority or default.majority,
        minority=data.minority or default.minority,
        minority_ratio=data.minority_ratio,
        train_users=data.train_users or default.train_users,
        test_users=data.test_users or default.test_users,
        pairs_per_user=data.pairs_per_user,
        context_pairs=data.context_pairs,
        test_prompt_share=data.test_prompt_share,
        taste_mix=data.taste_mix,
        label_noise=data.label_noise,
        seed=data.population_seed,
    )
    return make_splits(prompts, population)


def _styles(data: DataArguments) -> DatasetDict:
    from trl_pafo.sources.styles import load_styles

    return _typed(data, load_styles(), Population(majority=["thorough"], minority=["playful"]))


def _dsp(data: DataArguments) -> DatasetDict:
    from trl_pafo.sources.dsp import dsp_population, load_dsp

    return _typed(data, load_dsp(_path(data), data.max_words), dsp_population())


def _swissmetro(data: DataArguments) -> DatasetDict:
    from trl_pafo.sources.swissmetro import load_swissmetro

    return load_swissmetro(data.data_path, train_users=data.train_users, test_users=data.test_users, seed=data.population_seed)


SOURCES: dict[str, Callable[[DataArguments], DatasetDict]] = {"styles": _styles, "dsp": _dsp, "swissmetro": _swissmetro}
