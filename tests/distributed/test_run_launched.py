"""`accelerate launch ... run` with TRL's configuration: a process that is killed, or fails, ends all, and the same command goes on."""

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml
from helpers.ranks import CPU_AS_GPU, PATIENCE, accelerate, environment, needs_deepspeed

from trl_pafo.storage.run_folder import KEPT

pytestmark = pytest.mark.slow

OPTIONS = {"source": "styles", "train_users": 16, "test_users": 10, "pairs_per_user": 2, "context_pairs": 2}
OPTIONS |= {"minority_ratio": 0.4, "reference_steps": [1], "teacher_folds": 1, "validation_share": 0, "num_history": 1}
OPTIONS |= {"methods": ["personalized_bt", "pafo"], "num_resamples": 50, "max_length": 256, "max_steps": 6, "save_steps": 2}
OPTIONS |= {"per_device_train_batch_size": 2, "learning_rate": 0.01, "logging_steps": 1, "gradient_checkpointing": False}
OPTIONS |= {"use_cpu": True, "bf16": False, "report_to": "none"}
POINT = "models/personalized_bt_x1"


def start(folder: Path, model: str, launcher: str = "multi_gpu", **options) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    config = OPTIONS | {"model_name_or_path": model, "output_dir": str(folder / "run")} | options
    on_cpu = {} if launcher == "multi_gpu" else CPU_AS_GPU
    config["use_cpu"] = not on_cpu
    (folder / "run.yaml").write_text(yaml.safe_dump({name: value for name, value in config.items() if value is not None}))
    command = [
        *accelerate(launcher, folder, mixed_precision="no"),
        "-m",
        "trl_pafo.cli",
        "run",
        "--config",
        str(folder / "run.yaml"),
    ]
    how = {"env": environment(**on_cpu), "cwd": folder, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, **how)


def finish(process: subprocess.Popen) -> str:
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, said[-4000:]
    return said


def pid_of(rank: int, launcher: subprocess.Popen) -> int:
    children = psutil.Process(launcher.pid).children(recursive=True)
    return next(child.pid for child in children if child.environ().get("RANK") == str(rank))


def outcome(folder: Path) -> tuple:
    results = json.loads((folder / "run/results/results.json").read_text())
    del results["seconds"]
    weights = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("model.safetensors")}
    stages = {name: done["digest"] for name, done in json.loads((folder / "run/manifest.json").read_text())["stages"].items()}
    return results, weights, stages


@pytest.fixture(scope="module")
def undisturbed(encoder, tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, finish(start(folder, encoder))


def test_one_process_speaks(undisturbed):
    folder, said = undisturbed
    for line in ("[prepare]", "[personalized_bt@1]", "[pafo]", "[evaluate]", f"Report:  {folder}/run/report.html"):
        assert said.splitlines().count(line) == 1, said


def kill(rank: int, process: subprocess.Popen, folder: Path) -> None:
    """Kill a process of the run once its first training has a checkpoint; the launcher ends the others."""
    checkpoint = folder / f"run/{POINT}.partial/{KEPT}/checkpoint-2/trainer_state.json"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    psutil.Process(pid_of(rank, process)).send_signal(signal.SIGKILL)
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode != 0, said
    assert not (folder / "run" / POINT).exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_of_which_a_process_was_killed_resumes(rank, undisturbed, encoder, tmp_path):
    kill(rank, start(tmp_path / "killed", encoder), tmp_path / "killed")
    again = finish(start(tmp_path / "killed", encoder))
    assert "[prepare] done before, kept" in again
    assert "resuming after step" in again
    assert outcome(tmp_path / "killed") == outcome(undisturbed[0])


@pytest.mark.parametrize(
    ("launcher", "model"),
    [("fsdp2", "decoder"), *(pytest.param(name, "encoder", marks=needs_deepspeed) for name in ("zero2", "zero3"))],
)
def test_a_run_whose_models_are_sharded_resumes(launcher, model, request, tmp_path):
    base = request.getfixturevalue(model)
    finish(start(tmp_path / "undisturbed", base, launcher))
    kill(1, start(tmp_path / "killed", base, launcher), tmp_path / "killed")
    assert "resuming after step" in finish(start(tmp_path / "killed", base, launcher))
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "undisturbed")


def test_an_error_of_the_first_alone_ends_all_with_its_message(encoder, tmp_path):
    (tmp_path / "broken.csv").write_text("prompt,chosen\nA?,yes\n")
    data = dict.fromkeys(("train_users", "test_users", "pairs_per_user", "context_pairs", "minority_ratio"))
    process = start(tmp_path / "failing", encoder, **data, source="files", data_path=str(tmp_path / "broken.csv"))
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode != 0
    assert "trl-pafo run: " in said
    assert "broken.csv" in said
    assert not list((tmp_path / "failing/run").glob("*.partial"))


def test_an_error_of_a_training_ends_all_with_its_message(encoder, tmp_path):
    process = start(tmp_path / "failing", encoder, optim="adamw_bnb_8bit")
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode != 0
    assert "bitsandbytes" in said
    assert not (tmp_path / "failing/run" / POINT).exists()
