"""The configurations that TRL ships launch `trl-pafo reward` and the example: two processes and the CPU are all that is changed."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.parts import GROUPS
from helpers.ranks import CONFIGS, CPU_AS_GPU, PATIENCE, accelerate, environment, make_parts, training_pairs
from helpers.rounding import rounding
from safetensors.torch import load_file

WRAPPERS = {
    "multi_gpu": "DistributedDataParallel",
    "fsdp1": "FullyShardedDataParallel",
    "fsdp2": "FSDPModule",
    "zero1": "DeepSpeedEngine",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
}
EXAMPLE = Path(__file__).parents[2] / "examples/reward_pafo.py"
TARGETS = {"reward": ["-m", "trl_pafo.cli", "reward"], "example": [str(EXAMPLE)]}
# The same global batch on one process.
ONE_PROCESS = ["--per_device_train_batch_size", "8", "--use_cpu", "true"]

pytestmark = pytest.mark.slow


def test_no_configuration_of_trl_is_left_out():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*WRAPPERS, "single_gpu"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    make_parts(folder)
    (folder / "pairs").mkdir()
    training_pairs("checkpoints").to_json(folder / "pairs/train.jsonl")
    return folder


def flags(parts: Path, out: Path, teachers: str) -> list[str]:
    options = {
        "model_name_or_path": parts / "student",
        "dataset_name": parts / "pairs",
        "teachers": json.dumps({group: str(parts / teachers / group) for group in GROUPS}),
        "output_dir": out,
        "max_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 2e-3,
        "adam_epsilon": 1e-5,
        "max_length": 256,
        "bf16": "false",
        "gradient_checkpointing": "false",
        "save_strategy": "no",
        "report_to": "none",
    }
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


def start(command: list[str], folder: Path, **variables: str) -> None:
    done = subprocess.run(
        command,
        env=environment(**variables),
        cwd=folder,  # the package is found by its path alone
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture(scope="module")
def expected(parts, tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """Weights after the training in one process, with the same global batch."""
    found = {}
    for teachers in ("checkpoints", "adapters"):
        out = tmp_path_factory.mktemp("single")
        start([sys.executable, *TARGETS["reward"], *flags(parts, out / "student", teachers), *ONE_PROCESS], out)
        found[teachers] = load_file(out / "student/model.safetensors")
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("config", WRAPPERS)
def test_configuration(config, target, parts, expected, tmp_path):
    if config.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed")
    if config == "fsdp1" and not torch.accelerator.is_available():
        pytest.skip("the first version of FSDP does not run on a CPU")
    teachers = "checkpoints" if target == "reward" else "adapters"
    command = [
        *accelerate(config, tmp_path, mixed_precision="no"),
        *TARGETS[target],
        *flags(parts, tmp_path / "student", teachers),
    ]
    if config == "multi_gpu":
        start([*command, "--use_cpu", "true"], tmp_path, WRAPPERS=str(tmp_path / "wrappers.jsonl"))
    else:
        start(command, tmp_path, WRAPPERS=str(tmp_path / "wrappers.jsonl"), **CPU_AS_GPU)
    wrappers = [json.loads(line) for line in (tmp_path / "wrappers.jsonl").read_text().splitlines()]
    assert {wrapper["rank"] for wrapper in wrappers} == {0, 1}
    for wrapper in wrappers:
        assert WRAPPERS[config] in wrapper["classes"]
        if config.startswith("zero"):
            assert wrapper["stage"] == int(config[-1])
    got = load_file(tmp_path / "student/model.safetensors")
    assert got.keys() == expected[teachers].keys()
    for name, tensor in expected[teachers].items():
        np.testing.assert_allclose(got[name], tensor, atol=1e-4, err_msg=name)
    assert len(list((tmp_path / "student/teacher_margins").glob("*.npy"))) == 2


def test_a_single_process(parts, expected, tmp_path):
    """The same, launched by `single_gpu.yaml`."""
    launcher = accelerate("single_gpu", tmp_path, mixed_precision="no", num_processes=1)
    start([*launcher, *TARGETS["reward"], *flags(parts, tmp_path / "student", "checkpoints"), *ONE_PROCESS], tmp_path)
    got = load_file(tmp_path / "student/model.safetensors")
    for name, tensor in expected["checkpoints"].items():
        np.testing.assert_allclose(got[name], tensor, atol=rounding(tensor), err_msg=name)
