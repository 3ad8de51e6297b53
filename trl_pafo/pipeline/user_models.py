"""Methods of a run that describe a user by a vector: features of two models, and what is fitted to those that held-out pairs choose."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, DatasetDict

from trl_pafo.baselines.features import FeaturePairs, pair_features
from trl_pafo.baselines.table import USER_MODELS
from trl_pafo.baselines.user_model import UserModel
from trl_pafo.evaluation.methods import TITLES
from trl_pafo.evaluation.reference_path import value_of
from trl_pafo.evaluation.rewards import ScoredPairs
from trl_pafo.metrics import group_accuracy, pair_correctness
from trl_pafo.metrics.verdict import format_number
from trl_pafo.models.base_models import with_new_head
from trl_pafo.models.scoring import FeatureReader, RewardScorer
from trl_pafo.pipeline.stage import Stage
from trl_pafo.storage.files import write_text
from trl_pafo.storage.versions import __version__

if TYPE_CHECKING:
    from trl_pafo.pipeline.run import Run

FOLDER = "user_models"
"""Folder of a run: `features/{bradley_terry,base}/{train,validation,test}.safetensors`, and a folder a method."""
SOURCES = {"bradley_terry": TITLES["bradley_terry"], "base": "the base model"}
"""Models whose features a method may read, and their names for people; of equals, and where nothing is held out, the first counts."""
_CHOICE = "choice.json"


def read_choice(folder: str | Path) -> dict[str, Any]:
    """Which features a method reads: `chosen`, one of [`SOURCES`]; `rule`; `validation`, accuracies on held-out pairs by source; and
    `sentence`, which says so."""
    return json.loads((Path(folder) / _CHOICE).read_text(encoding="utf-8"))


def score_fitted(folder: str | Path, rows: Dataset, **scoring: Any) -> ScoredPairs:
    """Rewards of the test pairs `rows`, from their features beside the folder of the method, each given the past pairs that the other
    methods read.
    """
    folder = Path(folder)
    features = FeaturePairs.load(folder.parent / f"features/{read_choice(folder)['chosen']}/test.safetensors")
    return ScoredPairs(*USER_MODELS[folder.name].load().load(folder).score(features).T)


def user_models(run: "Run", data: DatasetDict, plain: Stage) -> list[Stage]:
    """The features, of the Bradley-Terry model of the stage `plain` and, where pairs are held out, of the base, and each method of the
    run, fitted to those with which it is better on the held-out pairs."""
    splits = {**data, "train": data["train"].select(run._kept)}
    sources = list(SOURCES) if "validation" in data else ["bradley_terry"]

    def read(out: Path) -> None:
        for source in sources:
            if source == "base":
                base = with_new_head(run.base, None, run.args.seed, run.model.model_revision)
                reader = FeatureReader(*base)
            else:
                reader = RewardScorer(run.folder / plain.output)
            (out / source).mkdir(parents=True)
            for name, rows in splits.items():
                desc, size = f"Features of the {name} pairs, {SOURCES[source]}", run.args.per_device_eval_batch_size
                pair_features(reader, rows, batch_size=size, desc=desc).save(out / source / f"{name}.safetensors")

    made_from = {"model": plain.digest, **run._made_from, "max_length": run.args.max_length, "sources": sources}
    # In float32: under a base that was not trained, responses differ little more than bfloat16 rounds.
    inputs = made_from | {"seed": run.args.seed} | run._inputs_of_scoring() | {"bf16": False}
    features = Stage("user_features", f"{FOLDER}/features", inputs, read, (plain.name,), derived=True)
    held_out = data.get("validation")
    return [features, *(_fitted(run, m, features, sources, held_out) for m in USER_MODELS if m in run.run.methods)]


def _fitted(run: "Run", method: str, features: Stage, sources: list[str], held_out: Dataset | None) -> Stage:
    kind, seed = USER_MODELS[method].load(), run.args.seed

    def fit(out: Path) -> None:
        fitted: dict[str, UserModel] = {}
        found: dict[str, dict[str, Any]] = {}
        for source in sources:
            folder = run.folder / features.output / source
            pairs = FeaturePairs.load(folder / "train.safetensors")
            fitted[source] = kind.fit(pairs, seed=seed, desc=f"{TITLES[method]}, {SOURCES[source]}")
            if held_out is not None:
                rewards = fitted[source].score(FeaturePairs.load(folder / "validation.safetensors"))
                found[source] = _accuracies(rewards, held_out["group"][:])
        choice = choose(method, found, run.rule)
        fitted[choice["chosen"]].save(out)
        write_text(out / _CHOICE, json.dumps(choice, indent=2) + "\n")
        print(f"    {choice['sentence']}", flush=True)

    inputs: dict[str, Any] = {"features": features.digest, "rule": run.rule, "seed": seed, "version": __version__}
    inputs |= {"steps": kind.num_steps, "fits": len(sources)}
    return Stage(method, f"{FOLDER}/{method}", {"method": method, **inputs}, fit, (features.name,), derived=True)


def choose(method: str, found: dict[str, dict[str, Any]], rule: str) -> dict[str, Any]:
    """What [`read_choice`] reads, from the accuracies on held-out pairs by source, none where none are held out; the rule is one of
    [`~trl_pafo.evaluation.reference_path.RULES`]."""
    values = {source: value_of(rule, summary) for source, summary in found.items()}
    chosen = max(values, key=lambda source: values[source], default="bradley_terry")
    sentence = f"{TITLES[method]} reads features of {SOURCES[chosen]}"
    if found:
        each = ", ".join(f"{SOURCES[source]} {format_number(value)}" for source, value in values.items())
        sentence += f", chosen by {rule.replace('_', ' ')} accuracy on held-out pairs: {each}."
    else:
        sentence += ": no pairs are held out to choose between these and those of the base model (--validation_share)."
    return {"chosen": chosen, "rule": rule, "validation": found, "sentence": sentence}


def _accuracies(rewards: np.ndarray, group: list[str]) -> dict[str, Any]:
    correct = pair_correctness(rewards[:, 0] - rewards[:, 1])
    of_groups = {f"accuracy/{name}": {"value": value} for name, value in group_accuracy(correct, group).items()}
    return {"overall": {"value": float(correct.mean())}, **of_groups}
