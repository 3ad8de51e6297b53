"""Where the rewards of pairs come from: saved models, columns of a table, Python functions, of anybody's training."""

import importlib
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset

from trl_pafo.data.sources.judgments import REWARDS, ROW
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.evaluation.rewards import SIDES, ScoredPairs, score_tokenized
from trl_pafo.models.safe_loading import check_found
from trl_pafo.models.scoring import RewardScorer
from trl_pafo.models.weights import check_reward_model


@dataclass(frozen=True)
class RewardFunction:
    """A Python function in the shape of TRL's reward functions, and its name."""

    name: str
    call: Callable[..., Sequence[float]]


@dataclass(frozen=True)
class TableRewards:
    """Columns of the table with the rewards of a model, and which of the models there it is."""

    columns: tuple[str, ...]
    place: int


Source = str | RewardFunction | TableRewards
"""A folder or Hub id of a saved model, a function, or columns."""


def load_function(spec: str, flag: str = "--reward_function") -> RewardFunction:
    """The function that `package.module:name` names; modules of the working folder are found too. Errors begin with the flag.

    Raises:
        ConfigError: If there is none, or its module cannot be imported.
    """
    module, _, name = spec.partition(":")
    if not module or not name:
        raise ConfigError(f"{flag} {spec}: write package.module:function.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever the module does
        raise ConfigError(f"{flag} {spec}: the module {module} cannot be imported ({type(error).__name__}: {error}).") from error
    call = getattr(found, name, None)
    if not callable(call):
        raise ConfigError(f"{flag} {spec}: {module} has no function {name}. Correct the name.")
    return RewardFunction(spec, call)


def columns_in(models: Any) -> list[str]:
    """The columns of the table among `models`, see [`name_sources`]."""
    return [name for model in _listed(models) if isinstance(model, tuple) for name in model]


def name_sources(models: Any, reference: Any = None, num_in_table: int = 0) -> tuple[dict[str, Source], str | None]:
    """A name for each model, and that of the reference, which is by default the first of several.

    `models` are as in [`~trl_pafo.evaluation.evaluate.evaluate_models`]. Those of a `dict` have names; others are named by the end of their
    path that tells them apart, their columns, or the name of the function. The columns are of `num_in_table` models together.

    Raises:
        ConfigError: If there is no model, or one is given twice.
    """
    shared = len(columns_in(models)) // num_in_table if num_in_table else 0
    taken = 0
    sources: list[Source] = []
    names: list[str | None] = []
    given = list(models) if isinstance(models, Mapping) else None
    for number, model in enumerate(_listed(models)):
        if isinstance(model, tuple):
            each = shared or len(model)
            parts: list[Source] = [
                TableRewards(model[n : n + each], (taken + n) // each) for n in range(0, len(model) - len(model) % each, each)
            ]
            taken += len(model)
            if given is not None and len(model) != each:
                raise ConfigError(f"The model {given[number]!r} needs {each} columns of the table, got {', '.join(model)}.")
        elif callable(model):
            parts = [RewardFunction(getattr(model, "__name__", type(model).__name__), model)]
        else:
            parts = [model if isinstance(model, RewardFunction) else str(model)]
        sources += parts
        names += [None if given is None else str(given[number])] * len(parts)
    if not sources:
        raise ConfigError("Give a model: --model_name_or_path, --score_columns or --reward_function.")
    place = 0
    if reference is not None:
        if isinstance(reference, tuple):
            reference = ", ".join(reference)
        elif not isinstance(reference, str):
            reference = getattr(reference, "__name__", str(reference))
        place = _names_of(sources, names).get(reference, len(sources))
        if place == len(sources):
            sources.append(reference)
            names.append(None)
        elif len(sources) == 1:
            raise ConfigError(f"--reference is the model itself ({reference}). Name another, or leave it out.")
    if twice := [label for label, number in Counter(map(_label, sources)).items() if number > 1 and given is None]:
        raise ConfigError(f"The model {twice[0]} is given twice. Leave one out.")
    short = _short(sources)
    titles = [name or short[number] for number, name in enumerate(names)]
    if len(set(titles)) < len(titles):
        raise ConfigError(f"Two models have one name ({', '.join(titles)}). Give each its own.")
    return dict(zip(titles, sources, strict=True)), titles[place] if len(titles) > 1 else None


def _names_of(sources: list[Source], names: list[str | None]) -> dict[Any, int]:
    """What a reference may say to mean one of the models."""
    short = _short(sources)
    found = {name: place for place, name in enumerate(names) if name is not None}
    return {_label(s): place for place, s in enumerate(sources)} | {title: n for n, title in enumerate(short)} | found


def _listed(models: Any) -> list[Any]:
    if isinstance(models, Mapping):
        return list(models.values())
    return models if isinstance(models, list) else [models]


def _label(source: Source) -> str:
    if isinstance(source, RewardFunction):
        return source.name
    return ", ".join(source.columns) if isinstance(source, TableRewards) else source


def _short(sources: list[Source]) -> list[str]:
    """Labels; of folders, the last parts that tell all apart."""
    labels = list(map(_label, sources))
    for length in range(1, 10):
        short = [
            "/".join(Path(label).parts[-length:]) if isinstance(source, str) else label
            for source, label in zip(sources, labels, strict=True)
        ]
        if len(set(short)) == len(set(labels)):
            return short
    return labels


def check_models(models: Any, reference: Any = None) -> None:
    """Raise where a saved model among `models`, which are as in [`name_sources`], is not there, or a folder of one gives no rewards. This needs
    neither weights nor rows, so that nothing is said of a reference that may be columns of the table.

    Raises:
        ConfigError: If a model gives no rewards, or the models cannot be told apart.
        TeacherError: If there is no such folder and no such repository.
    """
    sources, _ = name_sources(models, reference)
    unsure = str(reference) if columns_in(models) else None
    for source in sources.values():
        if isinstance(source, str) and source != unsure:
            check_found(source)
            if os.path.isdir(source):
                check_reward_model(source)


def score_sources(
    sources: Mapping[str, Source],
    rows: Dataset,
    what: str,
    scorer_of: Callable[[str], RewardScorer],
    batch_size: int = 32,
    processes: PartialState | None = None,
) -> tuple[dict[str, ScoredPairs], dict[str, Path]]:
    """The rewards of the same pairs from each source, and the folders of the saved models.

    `scorer_of` makes the scorer of a folder or Hub id. All models have read all rows before any is scored. `batch_size` counts pairs in a
    forward pass, and in a call of a function. The `processes`, all of which call this with the same rows, share the forward passes of saved models.

    Raises:
        ConfigError: If a model cannot be loaded, or a function fails or returns something else than a finite number for each response.
        DataError: If a model cannot read a row; the message names it.
        TeacherError: If a reward of a saved model is not finite.
    """
    what = what[0].lower() + what[1:] if what.startswith("The ") else what
    numbers = rows[ROW][:] if ROW in rows.column_names else range(len(rows))
    place = lambda row: f"{what}, row {numbers[row]}"  # noqa: E731
    scorers = {name: scorer_of(source) for name, source in sources.items() if isinstance(source, str)}
    folders = {name: scorer.folder for name, scorer in scorers.items()}
    shown = rows.remove_columns([name for name in (REWARDS, ROW) if name in rows.column_names])
    ids = {}
    for name, scorer in scorers.items():
        try:
            ids[name] = scorer.tokenize(shown, place)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
    scored = {}
    for name, source in sources.items():
        if isinstance(source, RewardFunction):
            scored[name] = _by_function(source, shown, place, batch_size)
        elif isinstance(source, TableRewards):
            both = np.array([rewards[source.place] for rewards in rows[REWARDS]], dtype=np.float64)
            scored[name] = ScoredPairs(*both.T)
        else:
            how: dict[str, Any] = {"batch_size": batch_size, "desc": f"Pairs, {name}", "processes": processes}
            scored[name] = score_tokenized(scorers.pop(name), ids.pop(name), **how)
    return scored, folders


def _by_function(function: RewardFunction, rows: Dataset, place: Callable[[int], str], batch_size: int) -> ScoredPairs:
    """Rewards of a function, which sees both responses of a batch of pairs in one call."""
    others = [name for name in rows.column_names if name not in ("prompt", "completions", "prompts", *SIDES)]
    rewards: list[list[float]] = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        size = len(batch["chosen"])
        where = f"{place(start)} to {place(start + size - 1).rpartition(' ')[2]}".replace(", row ", ", rows ")
        prompts = batch.get("prompt", [""] * size) * 2
        try:
            found: Any = function.call(
                prompts=prompts, completions=batch["chosen"] + batch["rejected"], **{name: batch[name] * 2 for name in others}
            )
        except Exception as error:
            raise ConfigError(
                f"The reward function {function.name} failed ({type(error).__name__}: {error}; {where}). It is called as "
                f"f({', '.join(f'{name}=...' for name in ('prompts', 'completions', *others))}), each a list with an entry a response."
            ) from error
        found = found.tolist() if hasattr(found, "tolist") else found
        if not isinstance(found, list | tuple) or len(found) != 2 * size:
            got = f"{len(found)} rewards" if isinstance(found, list | tuple) else f"{type(found).__name__}, not a list"
            raise ConfigError(
                f"The reward function {function.name} returned {got} for {2 * size} responses ({where}). Return a number for each."
            )
        for number, reward in enumerate(found):
            if not _is_finite(reward):
                raise ConfigError(
                    f"The reward function {function.name} returned {reward!r} for the {SIDES[number >= size]} response of "
                    f"{place(start + number % size)}. Return a finite number for each."
                )
        rewards += [[float(c), float(r)] for c, r in zip(found[:size], found[size:], strict=True)]
    return ScoredPairs(*np.array(rewards, dtype=np.float64).T)


def _is_finite(value: Any) -> bool:
    try:
        return value is not None and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False
