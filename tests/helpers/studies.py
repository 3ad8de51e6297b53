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
    config = {
        "output_dir": str(folder),
        "model_name_or_path": "none-is-loaded",
        "use_cpu": True,
        "bf16": False,
        "methods": ["bradley_terry", "pafo", "group_routed"],
        "data": {"common": STYLES, "rare": {**STYLES, "minority_ratio": 0.05}},
        "population_seeds": [0, 1],
        "seeds": [1, 2],
    }
    return StudyConfig.make(config | given)


@cache
def _made_up(methods: tuple[str, ...], population: int, seed: int) -> Path:
    """A run, made once, whose rewards depend on the seeds."""
    folder = Path(tempfile.mkdtemp(prefix="made-up-runs-")) / "run"
    return make_run(folder, methods, users=(6, 4), seed=10 * population + seed, population_seed=population)


def pretend(
    fails: Callable[[Mapping[str, Any]], str | None] = lambda options: None, done: list[Mapping[str, Any]] | None = None
) -> Callable[[Mapping[str, Any], Path], str | None]:
    """Does a run by making up its rewards; `fails` says what goes wrong, `done` gets the options of each try."""

    def attempt(options: Mapping[str, Any], log: Path) -> str | None:
        if done is not None:
            done.append(options)
        with open(log, "a", encoding="utf-8") as file:
            file.write("[evaluate]\n")
        if (error := fails(options)) is not None:
            return error
        folder = Path(options["output_dir"])
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(_made_up(tuple(options["methods"]), options["population_seed"], options["seed"]), folder)
        return None

    return attempt
