"""Training with teachers on two processes, under every launcher, against one process: losses, margins, weights, what is saved."""

import gc
import json
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from filelock import FileLock
from helpers.naive import naive_pairs
from helpers.parts import GROUPS, make_pairs
from helpers.ranks import (
    NUM_STEPS,
    assert_wrapped,
    launch,
    lora,
    make_parts,
    needs_deepspeed,
    options,
    training_pairs,
    wrapper_of,
)
from helpers.rounding import rounding
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import trl_pafo.trainer.loaded_teachers
from trl_pafo import PAFORewardTrainer
from trl_pafo.trainer.loaded_teachers import TeacherModels


def given_teachers(parts: Path, teachers: str) -> dict | None:
    if teachers == "column":
        return None
    return {group: parts / ("adapters" if "adapters" in teachers else "checkpoints") / group for group in GROUPS}


def evaluation_pairs() -> Dataset:
    return make_pairs(num_users=3, num_minority=1, pairs_per_user=3, seed=5)


@contextmanager
def watched_teachers() -> Iterator[tuple[list, list]]:
    """Weak references to the teachers that are loaded inside, and how each stands in memory."""
    loaded, placed = [], []
    load, place = trl_pafo.trainer.loaded_teachers.load_reward_model, TeacherModels._load

    def load_and_remember(*args, **kwargs):
        model = load(*args, **kwargs)
        loaded.append(weakref.ref(model))
        return model

    def place_and_remember(self, *args):
        place(self, *args)
        here = [p.to_local() if isinstance(p, DTensor) else p for p in self._model.parameters()]
        share = sum(p.numel() for p in here) / sum(p.numel() for p in self._model.parameters())
        sharded_layers = sum(isinstance(m, FSDPModule) and "DecoderLayer" in type(m).__name__ for m in self._model.modules())
        placed.append({"share": share, "sharded_layers": sharded_layers, "is_adapter": hasattr(self._model, "peft_config")})

    trl_pafo.trainer.loaded_teachers.load_reward_model, TeacherModels._load = load_and_remember, place_and_remember
    try:
        yield loaded, placed
    finally:
        trl_pafo.trainer.loaded_teachers.load_reward_model, TeacherModels._load = load, place


def train(out: Path, parts: Path, student: str) -> dict:
    kind, teachers = student.split("-", 1)
    args = options(out / "run")
    given = given_teachers(parts, teachers)
    with watched_teachers() as (loaded, placed):
        trainer = PAFORewardTrainer(
            str(parts / "student"),
            args,
            train_dataset=training_pairs(teachers),
            teachers=given,
            peft_config=lora() if kind == "lora" else None,
        )
        gc.collect()
        found: dict = {"alive_before_training": sum(model() is not None for model in loaded)}
        found["margins"] = trainer.train_dataset["teacher_margin"][:]
        found["shown"] = trainer._shown is not None
        found["cached"] = len(list((out / "run/teacher_margins").glob("*.npy")))
        trainer.train()
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    gc.collect()
    found |= {
        "loaded": len(loaded),
        "placed": placed,
        "alive": sum(model() is not None for model in loaded),
        "optimized": len(optimized),
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "wrapper": wrapper_of(trainer),
    }
    output = trainer.predict(evaluation_pairs())
    found |= {"rewards": output.predictions.tolist(), "accuracy": output.metrics["test_accuracy"]}
    trainer.save_model(str(out / "trained"))
    return found


def train_all(out: Path, parts: str, *students: str) -> dict:
    return {student: train(out / student, Path(parts), student) for student in students}


STUDENTS = [f"{kind}-{teachers}" for kind in ("full", "lora") for teachers in ("checkpoints", "adapters", "column")]
MODES = ["ddp", "fsdp2", "zero1", "zero2", "zero3"]
# A training under DDP is part of the runs of test_run_on_ranks.py and test_exact_on_ranks.py, so here it is a slow test.
QUICK = {
    "fsdp2": ["full-checkpoints", "lora-adapters"],
    "zero3": ["full-adapters", "lora-checkpoints"],
}


def combinations() -> list:
    found = []
    for mode in MODES:
        quick = QUICK.get(mode, [])
        for student in STUDENTS:
            marks = [] if student in quick else [pytest.mark.slow]
            if mode.startswith("zero"):
                marks.append(needs_deepspeed)
            found.append(pytest.param((mode, student), id=f"{mode}-{student}", marks=marks))
    return found


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    folder = shared_folder(tmp_path_factory) / "parts"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make_parts(folder)
    return folder


def shared_folder(tmp_path_factory) -> Path:
    base = tmp_path_factory.getbasetemp()
    # Workers of pytest-xdist share what one of them has started.
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def wanted(request) -> dict[str, list[str]]:
    """The students that the chosen tests ask of each mode: one start of the processes trains them all."""
    found: dict[str, list[str]] = {}
    for item in request.session.items:
        if item.path == Path(__file__) and getattr(item, "callspec", None) and "run" in item.callspec.params:
            mode, student = item.callspec.params["run"]
            if student not in found.setdefault(mode, []):
                found[mode].append(student)
    return found


@pytest.fixture(scope="session")
def single(parts, tmp_path_factory):
    """What one process finds, by student."""
    kept: dict[str, tuple[dict, Path]] = {}

    def of(student: str) -> tuple[dict, Path]:
        if student not in kept:
            out = tmp_path_factory.mktemp("single") / student
            kept[student] = (train(out, parts, student), out)
        return kept[student]

    return of


@pytest.fixture(scope="session", params=combinations())
def run(request, parts, wanted, tmp_path_factory) -> tuple[str, str, list[dict], Path]:
    """Mode, student, what each process wrote down, and where the student was saved."""
    mode, student = request.param
    out = shared_folder(tmp_path_factory) / f"train-{mode}"
    with FileLock(f"{out}.lock"):
        if not out.exists():
            out.mkdir()
            launch(train_all, 2, out, str(parts), *wanted[mode], mode=mode)
    found = [json.loads((out / f"rank{rank}.json").read_text())[student] for rank in range(2)]
    return mode, student, found, out / student


def weights(out: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for file in sorted((out / "trained").glob("*.safetensors")) for key, tensor in load_file(file).items()}


def test_numbers_are_those_of_one_process(run, single, parts):
    mode, student, seen, out = run
    expected, reference = single(student)
    for found in seen:
        assert found["losses"][0] == pytest.approx(expected["losses"][0], abs=rounding(expected["losses"][0]))
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-4)
        assert found["margins"] == expected["margins"]  # to the last bit
        np.testing.assert_allclose(found["rewards"], expected["rewards"], atol=1e-3)
        assert found["accuracy"] == expected["accuracy"]
    assert len(expected["losses"]) == NUM_STEPS
    trained, wanted = weights(out), weights(reference)
    assert trained.keys() == wanted.keys()
    difference = max(float((trained[name] - wanted[name]).abs().max()) for name in wanted)
    loss = np.abs(np.subtract(seen[0]["losses"], expected["losses"])).max()
    print(f"{mode:6s} {student:25s} largest difference of losses {loss:.1e}, of weights {difference:.1e}")
    assert difference < 1e-4
    if student.startswith("full"):  # far more than that was learnt
        start = load_file(parts / "student/model.safetensors")
        assert max(float((wanted[name] - start[name]).abs().max()) for name in start) > 3e-3


def test_the_student_was_trained_in_the_wrapper_of_the_mode(run):
    mode, _, seen, _ = run
    for found in seen:
        assert_wrapped(found["wrapper"], mode)


def test_teachers_are_sharded_share_a_backbone_and_are_freed(run):
    mode, student, seen, _ = run
    _, teachers = student.split("-", 1)
    loads = 0 if teachers == "column" else 1 if "adapters" in teachers else 2
    for found in seen:
        assert found["loaded"] == len(found["placed"]) == loads
        assert found["alive"] == 0
        assert found["alive_before_training"] == 0
        for placed in found["placed"]:
            assert placed["is_adapter"] == ("adapters" in teachers)
            if mode in ("fsdp2", "zero3"):
                assert placed["sharded_layers"] == 2  # so a forward gathers a layer and not the teacher
                assert 0.49 < placed["share"] < 0.51
            else:
                assert placed["share"] == 1
                assert placed["sharded_layers"] == 0
        assert found["shown"] == (teachers != "column")
        kept = 0 if teachers == "column" else len(GROUPS)
        assert found["cached"] == kept


def test_the_optimizer_knows_the_student_alone(run, single):
    mode, student, seen, _ = run
    expected, _ = single(student)
    if not mode.startswith("zero"):  # whose optimizer holds flat pieces
        assert [found["optimized"] for found in seen] == [expected["optimized"]] * 2
    assert expected["optimized"] == (9 if student.startswith("lora") else 21)


def test_what_is_saved_is_the_student_alone_and_gives_the_same_rewards(run):
    _, student, seen, out = run
    files = {path.name for path in (out / "trained").iterdir()}
    if student.startswith("lora"):
        assert "adapter_model.safetensors" in files
        assert "model.safetensors" not in files
        names = {".".join(name.split(".")[-3:]) for name in weights(out)}
        assert len(names) == 5  # A and B of two projections, and the head
        assert any("score" in name for name in names)
    assert not [path for path in (out / "trained").rglob("*") if path.is_dir()]  # adapters with other names have folders
    model = AutoModelForSequenceClassification.from_pretrained(out / "trained", num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "trained")
    args = options(out / "run")
    trainer = PAFORewardTrainer(model, args, eval_dataset=evaluation_pairs(), processing_class=tokenizer)
    pairs = naive_pairs(model, trainer.eval_dataset)
    np.testing.assert_allclose(
        seen[0]["rewards"], [[pair["chosen"], pair["rejected"]] for pair in pairs], atol=rounding(seen[0]["rewards"])
    )


def test_every_process_says_the_same(run):
    _, _, seen, _ = run
    for key in ("losses", "margins", "rewards", "accuracy"):
        assert seen[0][key] == seen[1][key]
