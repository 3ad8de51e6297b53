"""Small studies whose runs are made up at once, and what does them."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from helpers.fake_runs import make_run
from trl_pafo.study.config import StudyConfig

STYLES = {"source": "styles", "train_users": 10}


def make_config(folder: Path, **given: Any) -> StudyConfig:
    """Two data sets, two populations and two seeds, unless other things are given."""
    config = {"output_dir": str(folder), "model_name_or_path": "none-is-loaded", "use_cpu": True, "bf16": False}
    config |= {"methods": ["bradley_terry", "pafo", "group_routed"], "population_seeds": [0, 1], "seeds": [1, 2]}
    config["data"] = {"common": STYLES, "rare": {**STYLES, "minority_ratio": 0.05}}
    return StudyConfig.make(config | given)


def _seed(options: Mapping[str, Any]) -> int:
    """Of made-up rewards: other training seeds and learning rates give others."""
    return 10 * options["population_seed"] + options["seed"] + int(1e6 * options.get("learning_rate", 0))


_RUNS = tempfile.TemporaryDirectory(prefix="made-up-runs-")
"""Removed when the tests end."""


@cache
def _made_up(methods: tuple[str, ...], population: int, seed: int) -> Path:
    """A run, made once, of these rewards."""
    folder = Path(tempfile.mkdtemp(dir=_RUNS.name)) / "run"
    return make_run(folder, methods, users=(6, 4), seed=seed, population_seed=population)


def pretend(
    fails: Callable[[Mapping[str, Any]], str | None] = lambda options: None, done: list[Mapping[str, Any]] | None = None
) -> Callable[[Mapping[str, Any], Path, bool], str | None]:
    """Does a run by making up its rewards; `fails` says what goes wrong, `done` gets the options of each try."""

    def attempt(options: Mapping[str, Any], log: Path, trial: bool = False) -> str | None:
        if done is not None:
            done.append(options)
        with open(log, "a", encoding="utf-8") as file:
            file.write("[evaluate]\n")
        if (error := fails(options)) is not None:
            return error
        folder = Path(options["output_dir"])
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(_made_up(tuple(options["methods"]), options["population_seed"], _seed(options)), folder)
        return None

    return attempt
