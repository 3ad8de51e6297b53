"""A process for trainings that loads no torch and trains nothing: what a stage does is in its name."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

from trl_pafo.errors import DataError
from trl_pafo.pipeline import worker
from trl_pafo.pipeline.stage import Stage


def options(folder: Path) -> tuple[SimpleNamespace, ...]:
    """Of a run, as far as processes for trainings look at them."""
    return SimpleNamespace(folder=str(folder)), SimpleNamespace(_setup_devices="of this process"), SimpleNamespace()


def stage(name: str, *needs: str, inputs: dict | None = None) -> Stage:
    return Stage(name, f"models/{name}", inputs or {}, lambda out: None, needs, steps=10)


class LightRun:
    """`meets-X` ends when a stage whose name begins with X has begun, `fails`, `breaks`, `dies` and `waits` do so, all others end at once."""

    def __init__(self, folder: Path):
        self.notes = folder / "notes"

    def note(self, text: str) -> None:
        with open(self.notes, "a") as file:
            file.write(f"{text}\n")

    def ready(self, name: str, stages: None) -> Stage:
        return stage(name)

    def do(self, job: Stage) -> None:
        kind, _, other = job.name.partition("-")
        try:
            self.note(f"begin {job.name} {os.getpid()} {os.environ['OMP_NUM_THREADS']}")
            print(f"training {job.name}", flush=True)
            self.report(3, 12)
            while kind == "meets" and f"begin {other}" not in self.notes.read_text():
                time.sleep(0.01)
            if kind == "waits":
                time.sleep(600)
        except SystemExit:
            self.note(f"removes {job.name}")
            time.sleep(0.1)
            self.note(f"removed {job.name}")
            raise
        if kind == "fails":
            raise DataError("There are no pairs.")
        if kind == "breaks":
            raise RuntimeError("no memory")
        if kind == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        self.note(f"end {job.name}")


def serve(connection) -> None:
    worker._open = lambda run, args, model: (LightRun(Path(run.folder)), None)
    worker.serve(connection)
