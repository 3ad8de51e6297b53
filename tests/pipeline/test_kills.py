"""A whole run, killed with SIGKILL at random moments of each of its stages: started again, it ends as if nothing had happened."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers.parts import make_model

from trl_pafo.storage.run_folder import KEPT
from trl_pafo.trainer.checkpoints import last_checkpoint

pytestmark = pytest.mark.slow

NUM_KILLS = 20
# What the run says when each part of it begins. The margins are computed within the student's stage.
PARTS = [
    "[prepare]\n",
    "[model]\n",
    "[bradley_terry]\n",
    "[personalized_bt]\n",
    "[teacher:majority]\n",
    "[teacher:minority]\n",
    "[judge_teachers]\n",
    "[pafo]\n",
    "Margins of the teacher",
    "PAFO:",
    "[evaluate]\n",
    "[evaluate] ",  # the report
]
# Kills beyond one a part: in these trainings, after the first checkpoint has begun to be written.
TRAININGS = {
    "[bradley_terry]\n": "models/bradley_terry",
    "[personalized_bt]\n": "models/personalized_bt",
    "[teacher:majority]\n": "teachers/majority",
    "[teacher:minority]\n": "teachers/minority",
    "PAFO:": "models/pafo",
}
OPTIONS = {
    "source": "styles",
    "train_users": 12,
    "test_users": 10,
    "pairs_per_user": 2,
    "context_pairs": 2,
    "minority_ratio": 0.3,
    "validation_share": 0.3,
    "num_hidden_layers": 1,
    "num_history": 1,
    "num_resamples": 50,
    "max_length": 256,
    "max_steps": 8,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.01,
    "logging_steps": 1,
    "save_steps": 2,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
}


def child(config: str, log: str) -> None:
    """In a process of its own, which has imported the heavy libraries already."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    from trl_pafo.cli import main
    from trl_pafo.pipeline import run as stages

    stages.worth_distilling = lambda better: True  # whatever the few held-out pairs say
    sys.exit(main(["run", "--config", config]))


class Runner:
    """Starts runs of the command line with the same options."""

    def __init__(self, model: str):
        self.model = model
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["trl_pafo.pipeline.run", "trl_pafo.cli.run", "trl"])

    def start(self, folder: Path, attempt: int):
        config, log = folder.with_suffix(".yaml"), folder.with_suffix(f".{attempt}.log")
        # JSON is YAML.
        config.write_text(json.dumps(OPTIONS | {"model_name_or_path": self.model, "output_dir": str(folder)}))
        process = self.context.Process(target=child, args=(str(config), str(log)))
        process.start()
        return process, log

    def finish(self, folder: Path, attempt: int) -> tuple[str, dict[str, float]]:
        """Let a run end; return what it said, and when each part began (seconds from the first on, with the end)."""
        process, log = self.start(folder, attempt)
        begun: dict[str, float] = {}
        while process.is_alive():
            begun |= {part: time.monotonic() for part in PARTS if part not in begun and part in said(log)}
            time.sleep(0.01)
        assert process.exitcode == 0, said(log)[-3000:]
        return said(log), begun | {"end": time.monotonic()}


def said(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def outcome(folder: Path) -> dict:
    """All that must be the same: metrics, the weights and losses of each model, the digests of the stages."""
    results = json.loads((folder / "results/results.json").read_text())
    del results["seconds"]
    weights = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("model.safetensors")}
    losses = {
        p.relative_to(folder).as_posix(): [
            (log["step"], log["loss"]) for log in json.loads(p.read_text())["log_history"] if "loss" in log
        ]
        for p in folder.rglob("trainer_state.json")
    }
    stages = {name: done["digest"] for name, done in json.loads((folder / "manifest.json").read_text())["stages"].items()}
    rewards = {p.name: p.read_text() for p in (folder / "results").glob("*.jsonl")}
    return {"results": results, "weights": weights, "losses": losses, "stages": stages, "rewards": rewards}


def started(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("[") and line.endswith("]")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    base = tmp_path_factory.mktemp("kills")
    runner = Runner(make_model("encoder", base / "encoder"))
    text, begun = runner.finish(base / "undisturbed", 1)
    assert [part for part in PARTS if part not in begun] == []
    return runner, base, outcome(base / "undisturbed"), text, begun


@pytest.mark.parametrize("number", range(NUM_KILLS))
def test_a_killed_run_ends_as_an_undisturbed_one(undisturbed, number):
    runner, base, expected, whole, begun = undisturbed
    rng = random.Random(number)
    part = PARTS[number] if number < len(PARTS) else list(TRAININGS)[number % len(TRAININGS)]
    after = sorted(moment for moment in begun.values() if moment > begun[part])[0] - begun[part]
    folder = base / f"killed-{number}"
    process, log = runner.start(folder, 1)
    while part not in said(log) and process.is_alive():
        time.sleep(0.002)
    if number >= len(PARTS):
        checkpoint, after = folder / f"{TRAININGS[part]}.partial" / KEPT / "checkpoint-2", after / 2
        while not checkpoint.exists() and process.is_alive():
            time.sleep(0.002)
    time.sleep(rng.random() * after)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    first = said(log)
    partial = next(iter(folder.rglob(f"*.partial/{KEPT}")), None)
    checkpoint = partial and last_checkpoint(partial)
    second, _ = runner.finish(folder, 2)

    found = outcome(folder)
    for what in expected:
        assert found[what] == expected[what], what
    ours = started(first) + started(second)
    twice = {stage for stage in ours if ours.count(stage) > 1}
    assert set(ours) == set(started(whole))
    assert twice <= set(started(first)[-1:])  # the one that was killed, and none that was finished
    assert ("going on after step" in second) == (checkpoint is not None)
    assert (folder / "report.html").exists()
    left = [path for path in folder.rglob("*") if path.suffix in (".partial", ".tmp") or path.name == KEPT]
    assert left == []
    print(
        f"\nkilled in {part.strip()!r} after {started(first)[-1:]}, checkpoint {checkpoint and checkpoint.name}; done twice: {twice}"
    )
