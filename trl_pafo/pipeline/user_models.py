"""Methods of a run that describe a user by a vector: features of a reward model of the run, and what is fitted to them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, DatasetDict

from trl_pafo.baselines.features import FeaturePairs, pair_features
from trl_pafo.baselines.table import USER_MODELS
from trl_pafo.evaluation.methods import TITLES
from trl_pafo.evaluation.rewards import ScoredPairs
from trl_pafo.models.scoring import RewardScorer
from trl_pafo.pipeline.stage import Stage
from trl_pafo.storage.versions import __version__

if TYPE_CHECKING:
    from trl_pafo.pipeline.run import Run

FOLDER = "user_models"
"""Folder of a run: `features/{train,test}.safetensors`, and a folder a method."""


def score_fitted(folder: str | Path, rows: Dataset, **scoring: Any) -> ScoredPairs:
    """Rewards of the test pairs `rows`, from their features beside the folder of the method, each given the past pairs that the other
    methods read.
    """
    folder = Path(folder)
    features = FeaturePairs.load(folder.parent / "features/test.safetensors")
    return ScoredPairs(*USER_MODELS[folder.name].load().load(folder).score(features).T)


def user_models(run: "Run", data: DatasetDict, plain: Stage) -> list[Stage]:
    """The features, read by the head of the Bradley-Terry model of the stage `plain`, and each method of the run that is fitted to them."""

    def read(out: Path) -> None:
        scorer = RewardScorer(run.folder / plain.output, bf16=bool(run.args.bf16))
        out.mkdir(parents=True)
        for name, rows in {"train": data["train"].select(run._kept), "test": data["test"]}.items():
            size = run.args.per_device_eval_batch_size
            pair_features(scorer, rows, batch_size=size, desc=f"Features of the {name} pairs").save(out / f"{name}.safetensors")

    made_from = {"model": plain.digest, "data": run._made_from["data"], "max_length": run.args.max_length}
    inputs = made_from | run._inputs_of_scoring()
    features = Stage("user_features", f"{FOLDER}/features", inputs, read, (plain.name,), derived=True)
    return [features, *(_fitted(run, method, features) for method in USER_MODELS if method in run.run.methods)]


def _fitted(run: "Run", method: str, features: Stage) -> Stage:
    kind, seed = USER_MODELS[method].load(), run.args.seed

    def fit(out: Path) -> None:
        pairs = FeaturePairs.load(run.folder / features.output / "train.safetensors")
        kind.fit(pairs, seed=seed, desc=TITLES[method]).save(out)

    inputs: dict[str, Any] = {"features": features.digest, "seed": seed, "steps": kind.num_steps, "version": __version__}
    return Stage(method, f"{FOLDER}/{method}", {"method": method, **inputs}, fit, (features.name,), derived=True)
