"""Training with teachers on two processes, under every launcher, against one process: losses, margins, weights, what is saved."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import train_on_ranks as ranks
from filelock import FileLock
from helpers.naive import naive_pairs
from helpers.rounding import rounding
from launcher import launch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trl_pafo import PAFORewardTrainer

STUDENTS = [f"{kind}-{teachers}" for kind in ("full", "lora") for teachers in ("checkpoints", "adapters", "column")]
STREAMS = ["lora-stream-checkpoints", "full-stream-adapters"]
MODES = ["ddp", "fsdp2", "zero1", "zero2", "zero3"]
QUICK = {
    "ddp": ["lora-checkpoints"],
    "fsdp2": ["full-checkpoints", "lora-adapters"],
    "zero3": ["full-adapters", "lora-checkpoints"],
}


def combinations() -> list:
    found = []
    for mode in MODES:
        quick = QUICK.get(mode, [])
        for student in [*STUDENTS, *STREAMS, "full-memory"]:
            marks = [] if student in quick else [pytest.mark.slow]
            if mode.startswith("zero"):
                marks.append(pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed"))
            found.append(pytest.param((mode, student), id=f"{mode}-{student}", marks=marks))
    return found


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    folder = shared_folder(tmp_path_factory) / "parts"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            ranks.make_parts(folder)
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
            kept[student] = (ranks.main(parts, out, student), out)
        return kept[student]

    return of


@pytest.fixture(scope="session", params=combinations())
def run(request, parts, wanted, tmp_path_factory) -> tuple[str, str, list[dict], Path]:
    """Mode, student, what each process wrote down, and where the student was saved."""
    mode, student = request.param
    out = shared_folder(tmp_path_factory) / f"train-{mode}"
    with FileLock(f"{out}.lock"):
        if not out.exists():
            for name in wanted[mode]:
                (out / name).mkdir(parents=True)
            launch(Path(ranks.__file__), 2, str(parts), str(out), *wanted[mode], mode=mode, timeout=1800)
    return mode, student, [json.loads((out / student / f"rank{rank}.json").read_text()) for rank in range(2)], out / student


def weights(out: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for file in sorted((out / "trained").glob("*.safetensors")) for key, tensor in load_file(file).items()}


def test_numbers_are_those_of_one_process(run, single, parts):
    mode, student, seen, out = run
    expected, reference = single(student)
    for found in seen:
        assert found["losses"][0] == pytest.approx(expected["losses"][0], abs=rounding(expected["losses"][0]))
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-4)
        assert found.get("margins") == expected.get("margins")  # to the last bit
        np.testing.assert_allclose(found["rewards"], expected["rewards"], atol=1e-3)
        assert found["accuracy"] == expected["accuracy"]
    assert len(expected["losses"]) == ranks.NUM_STEPS
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
        wrapper = found["wrapper"]
        if mode.startswith("zero"):
            assert wrapper["classes"][0] == "DeepSpeedEngine"
            assert wrapper["stage"] == int(mode[-1])
        else:
            assert {"ddp": "DistributedDataParallel", "fsdp2": "FSDPModule"}[mode] in wrapper["classes"]


def test_teachers_are_sharded_share_a_backbone_and_are_freed(run):
    mode, student, seen, _ = run
    _, teachers = student.split("-", 1)
    loads = {"column": 0, "memory": 0}.get(teachers, 1 if "adapters" in teachers else 2)
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
        kept = {"column": 0}.get(teachers, 0 if teachers.startswith("stream") else len(ranks.GROUPS))
        if teachers == "memory":
            assert found["changed"] is False
            kept = 0 if mode == "zero3" else kept  # cut up by ZeRO-3, a model in memory cannot be told from another one
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
    args = ranks.options(out, 1, num_history=0 if "stream" in student else None)
    trainer = PAFORewardTrainer(model, args, eval_dataset=ranks.evaluation_pairs(), processing_class=tokenizer)
    pairs = naive_pairs(model, trainer.eval_dataset)
    np.testing.assert_allclose(
        seen[0]["rewards"], [[pair["chosen"], pair["rejected"]] for pair in pairs], atol=rounding(seen[0]["rewards"])
    )


def test_every_process_says_the_same(run):
    _, _, seen, _ = run
    for key in ("losses", "margins", "rewards", "accuracy"):
        assert seen[0].get(key) == seen[1].get(key)
