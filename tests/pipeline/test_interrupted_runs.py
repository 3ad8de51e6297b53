"""A run that is killed with SIGKILL at random moments of each of its stages: started again, it ends as if nothing had happened."""

import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from itertools import product
from pathlib import Path

import pytest
from helpers.parts import make_model
from helpers.small_runs import assert_outcome, outcome

from trl_pafo.storage.run_folder import KEPT
from trl_pafo.trainer.checkpoints import last_checkpoint

pytestmark = pytest.mark.slow

# Stages, and what those make that keep checkpoints.
STAGES = {
    "prepare": None,
    "model": None,
    "bradley_terry": "models/bradley_terry",
    "personalized_bt@1": "models/personalized_bt_x1",
    "personalized_bt@2": "models/personalized_bt_x2",
    "reference_path": None,
    "personalized_bt": None,
    "teacher:majority": "teachers/majority",
    "teacher:minority": "teachers/minority",
    "front": None,
    "pafo": "models/pafo",
    "evaluate": None,
}
OPTIONS = {"source": "styles", "train_users": 12, "test_users": 10, "pairs_per_user": 2, "context_pairs": 2}
OPTIONS |= {"minority_ratio": 0.3, "reference_steps": [1, 2], "teacher_folds": 1}
OPTIONS |= {"validation_share": 0.3, "num_hidden_layers": 1, "num_history": 1, "num_resamples": 50, "max_length": 256}
OPTIONS |= {"max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 0.01, "logging_steps": 1, "save_steps": 2}
OPTIONS |= {"distill_anyway": True, "gradient_checkpointing": False, "use_cpu": True, "bf16": False, "report_to": "none"}


def child(config: str, log: str, launched: dict[str, str]) -> None:
    """In a process of its own, which has imported the heavy libraries already; `launched` is what a launcher of several sets."""
    os.environ.update(launched)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    from trl_pafo.cli import main

    sys.exit(main(["run", "--config", config]))


class Runner:
    """Starts runs of the command line with the same options."""

    def __init__(self, model: str):
        self.model = model
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["trl_pafo.pipeline.run", "trl_pafo.cli.run", "trl"])

    def start(self, folder: Path, attempt: int, num_processes: int = 1, **options) -> tuple[list, Path]:
        config, log = folder.with_suffix(".yaml"), folder.with_suffix(f".{attempt}.log")
        # JSON is YAML.
        config.write_text(json.dumps(OPTIONS | options | {"model_name_or_path": self.model, "output_dir": str(folder)}))
        group: dict[str, str] = {}
        if num_processes > 1:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
            group |= {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
        processes = []
        for rank in map(str, range(num_processes)):
            launched = {**group, "RANK": rank, "LOCAL_RANK": rank} if group else {}
            processes.append(self.context.Process(target=child, args=(str(config), str(log), launched)))
            processes[-1].start()
        return processes, log

    def finish(self, folder: Path, attempt: int, num_processes: int = 1, **options) -> str:
        """Let a run end; return what it said."""
        processes, log = self.start(folder, attempt, num_processes, **options)
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * num_processes, said(log)[-3000:]
        return said(log)


def said(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def started(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("[") and line.endswith("]")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    base = tmp_path_factory.mktemp("interrupted")
    runner = Runner(make_model("encoder", base / "encoder"))
    text = runner.finish(base / "undisturbed", 1)
    assert started(text) == [f"[{stage}]" for stage in STAGES]
    return runner, base, outcome(base / "undisturbed")


@pytest.mark.parametrize("after_checkpoint", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_run_ends_as_an_undisturbed_one(undisturbed, stage, after_checkpoint):
    runner, base, expected = undisturbed
    seconds = json.loads((base / "undisturbed/manifest.json").read_text())["stages"][stage]["seconds"]
    folder = base / f"killed-{stage}-{after_checkpoint}".replace(":", "-")
    [process], log = runner.start(folder, 1)
    checkpoint = folder / f"{STAGES[stage]}.partial" / KEPT / "checkpoint-2"
    wait_for_checkpoint = after_checkpoint and STAGES[stage]
    while process.is_alive() and (f"[{stage}]\n" not in said(log) or (wait_for_checkpoint and not checkpoint.exists())):
        time.sleep(0.002)
    time.sleep(random.Random(f"{stage} {after_checkpoint}").random() * seconds / (2 if wait_for_checkpoint else 1))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    first = said(log)
    partial = next(iter(folder.rglob(f"*.partial/{KEPT}")), None)
    kept = partial and last_checkpoint(partial)
    second = runner.finish(folder, 2)

    assert_outcome(folder, expected)
    ours = started(first) + started(second)
    assert set(ours) == {f"[{stage}]" for stage in STAGES}
    assert {line for line in ours if ours.count(line) > 1} <= set(
        started(first)[-1:]
    )  # the interrupted one, and none that was finished
    assert ("resuming after step" in second) == (kept is not None)
    assert (folder / "report.html").exists()
    assert [path for path in folder.rglob("*") if path.suffix in (".partial", ".tmp") or path.name == KEPT] == []


@pytest.mark.parametrize("number", range(4))
def test_a_run_with_trainings_side_by_side_ends_as_an_undisturbed_one(undisturbed, number):
    runner, base, expected = undisturbed
    folder = base / f"side-by-side-{number}"
    [process], log = runner.start(folder, 1, trainings_at_once=2)
    while process.is_alive() and not any(folder.glob("*/*.partial")):
        time.sleep(0.002)
    stages = json.loads((base / "undisturbed/manifest.json").read_text())["stages"]
    trainings = sum(done["seconds"] for name, done in stages.items() if STAGES[name])
    time.sleep(random.Random(number).random() * trainings / 2)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    said_again = runner.finish(folder, 2, trainings_at_once=2)
    assert_outcome(folder, expected)
    assert "2 at once" in said(log)
    assert "[evaluate]" in started(said_again)
    assert not [path for path in folder.rglob("*") if path.suffix in (".partial", ".tmp") or path.name == KEPT]


def test_a_run_on_two_processes_of_which_any_is_killed_in_any_stage(undisturbed):
    """In one folder, again and again, until all stages are done."""
    runner, base, _ = undisturbed
    runner.finish(base / "two", 1, 2)
    seconds = {n: done["seconds"] for n, done in json.loads((base / "two/manifest.json").read_text())["stages"].items()}
    folder, rng, num_killed = base / "two-killed", random.Random(0), 0
    for attempt, (stage, rank) in enumerate(product(STAGES, range(2))):
        processes, log = runner.start(folder, attempt, 2)
        while processes[rank].is_alive() and f"[{stage}]" not in said(log):
            time.sleep(0.002)
        time.sleep(rng.random() * seconds[stage])
        processes[rank].kill()
        processes[rank].join()
        num_killed += processes[rank].exitcode == -signal.SIGKILL
        processes[1 - rank].terminate()  # as a launcher does
        processes[1 - rank].join()
    runner.finish(folder, len(STAGES) * 2, 2)
    print(f"{num_killed} kills")
    assert num_killed >= 20
    assert_outcome(folder, outcome(base / "two"))
    assert not [path for path in folder.rglob("*") if path.suffix in (".partial", ".tmp") or path.name == KEPT]
