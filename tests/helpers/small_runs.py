"""A complete run on a tiny model that takes seconds, and one whose stages run without models."""

import json
from pathlib import Path
from typing import Any

import pytest
from trl import ModelConfig

from trl_pafo.evaluation.methods import RunArguments
from trl_pafo.pipeline import judged
from trl_pafo.pipeline import run as stages
from trl_pafo.pipeline.run import Run
from trl_pafo.trainer.config import PAFOConfig

DATA = {"train_users": 10, "test_users": 10, "pairs_per_user": 2, "context_pairs": 2, "minority_ratio": 0.3}
DATA |= {"reference_steps": [1], "validation_share": 0.0, "teacher_folds": 1}


def small_run(folder: Path, training: dict[str, Any], model: str, data=None, kind=None, **options: Any) -> Run:
    """A run of two steps a training, whose `options` are those of the run or the trainer, and `kind` those of the model."""
    known = set(RunArguments.__dataclass_fields__)
    run_options = {**DATA, "num_resamples": 50, **(data or {}), **{k: v for k, v in options.items() if k in known}}
    args = {**training, "max_steps": 2, "num_history": 1} | {k: v for k, v in options.items() if k not in known}
    return Run(
        RunArguments(**run_options),
        PAFOConfig(str(folder), **args),
        ModelConfig(model_name_or_path=model, **{"dtype": None, **(kind or {})}),
    )


def train_nothing(monkeypatch: pytest.MonkeyPatch, worth: bool = True, **best: float) -> list[str]:
    """Put stand-ins in the place of trainings, the front, evaluation and report; return the titles of the trainings, as they are done.

    A "model" is a file with its title, `worth` says whether distilling is worth it, `best` which multiple of the
    student's steps is the best by a rule.
    """
    trained: list[str] = []

    def train(self: Run, out: Path, title: str, *args: Any, **kwargs: Any) -> None:
        trained.append(title)
        out.mkdir(parents=True, exist_ok=True)
        (out / "model.safetensors").write_text(title)

    def score_path(folders: Any, held_out: Any, groups: Any, rule: str, *args: Any, **scoring: Any) -> dict[str, Any]:
        assert {Path(folder).name for folder in folders.values()} == {Path(point.output).name for point in folders}
        points = [{"multiple": point.multiple, "steps": point.steps, "validation": None} for point in folders]
        chosen = {"rule": rule, "chosen": best.get(rule, 1.0), "sentence": "The reference is chosen."}
        return {"points": points, "best": best, **chosen}

    def predict(out: Path, held_out: Any, train: Any, teachers: Any, *args: Any, **options: Any) -> None:
        assert len(held_out)
        assert all(Path(folder).is_dir() for folders in teachers.values() for folder in folders)
        out.mkdir()
        front = {"points": {}, "worth": worth, "sentence": "This is what can be had."}
        (out / "front.json").write_text(json.dumps(front))

    def evaluate(out, models, data, run, args, seconds, path, front, at, **how) -> None:
        out.mkdir()
        (out / "results.json").write_text(json.dumps({"methods": list(models), "front": front, "seconds": seconds}))

    monkeypatch.setattr(Run, "_train", train)
    monkeypatch.setattr(judged, "predict_run", predict)
    monkeypatch.setattr(judged, "score_path", score_path)
    monkeypatch.setattr(stages, "evaluate_run", evaluate)
    for name in ("write_report", "write_cards"):
        monkeypatch.setattr(stages, name, lambda *args: None)
    return trained


def outcome(folder: Path) -> dict:
    """All that must be the same: metrics, the weights and losses of each model, the digests of the stages."""
    results = json.loads((folder / "results/results.json").read_text())
    del results["seconds"]
    weights = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("model.safetensors")}
    states = {p.relative_to(folder).as_posix(): json.loads(p.read_text()) for p in folder.rglob("trainer_state.json")}
    losses = {
        name: [(log["step"], log["loss"]) for log in state["log_history"] if "loss" in log] for name, state in states.items()
    }
    stages = {name: done["digest"] for name, done in json.loads((folder / "manifest.json").read_text())["stages"].items()}
    rewards = {p.name: p.read_text() for p in (folder / "results").glob("*.jsonl")}
    return {"results": results, "weights": weights, "losses": losses, "stages": stages, "rewards": rewards}


def assert_outcome(folder: Path, expected: dict) -> None:
    found = outcome(folder)
    for what in expected:
        assert found[what] == expected[what], what
