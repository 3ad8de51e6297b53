"""Trainings of a run side by side, each in a process of its own, of which several follow each other in one process."""

import copy
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trl_pafo.errors import TrainingError
from trl_pafo.pipeline.apart import KILLED, Apart
from trl_pafo.pipeline.stage import Stage
from trl_pafo.pipeline.worker import Job, serve
from trl_pafo.storage.run_folder import RunFolder

LOGS = "logs"
"""Folder in that of a run: what each training said that another process did."""


class Worker(Apart):
    """A process that does stages of a run, one at a time, and what it does now."""

    def __init__(self, threads: int, options: Any):
        from accelerate.utils import patch_environment

        with patch_environment(OMP_NUM_THREADS=threads):
            super().__init__(serve)
        self.connection.send(options)
        self.stage: Stage | None = None


class Workers:
    """Processes that do trainings of a run in a folder, which is locked; on leaving, or where the run ends otherwise, they end.

    `num` says how many, `threads` how many each has in torch, `options` are the three that a [`Run`] takes.
    """

    def __init__(self, folder: RunFolder, num: int, threads: int, options: tuple[Any, Any, Any]):
        self.folder, self.num, self.threads = folder, num, threads
        run, args, model = (copy.copy(part) for part in options)
        run.only = ["a training"]  # which pushes nothing
        for name in ("_setup_devices", "distributed_state"):  # of this process
            vars(args).pop(name, None)
        self._options = run, args, model
        self._workers: list[Worker] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:  # all have the same seconds to end
            worker.process.terminate()
        for worker in self._workers:
            worker.end()

    def do(self, stages: Sequence[Stage]) -> None:
        """Do trainings, the first ones first, each when those that it needs are done.

        Raises:
            TrainingError: If one fails; the others are stopped.
        """
        num = min(self.num, len(stages))
        print(
            f"{len(stages)} trainings, {num} at once with {self.threads} thread{'s' * (self.threads > 1)} each; what they say is in "
            f"{self.folder / LOGS}",
            flush=True,
        )
        self._workers = [Worker(self.threads, self._options) for _ in range(num)]
        (self.folder / LOGS).mkdir(exist_ok=True)
        waiting, progress = list(stages), Progress(stages)
        try:
            while waiting or any(worker.stage for worker in self._workers):
                for worker in self._workers:
                    unfinished = {stage.name for stage in waiting} | {w.stage.name for w in self._workers if w.stage}
                    free = [stage for stage in waiting if not unfinished & set(stage.needs)]
                    if worker.stage is None and free:
                        waiting.remove(free[0])
                        self._start(worker, free[0])
                for connection in wait([worker.connection for worker in self._workers]):
                    worker = next(worker for worker in self._workers if worker.connection is connection)
                    self._hear(worker, progress)
        finally:
            progress.bar.close()

    def _start(self, worker: Worker, stage: Stage) -> None:
        worker.stage = stage
        worker.connection.send(Job(stage.name, stage.digest, str(self._log(stage))))

    def _hear(self, worker: Worker, progress: "Progress") -> None:
        try:
            kind, *said = worker.connection.recv()
        except (EOFError, OSError):
            kind, said = "failed", [worker.how_it_ended()]
            if worker.process.exitcode == KILLED:
                said[0] += " (fewer --trainings_at_once need less)"
        stage = worker.stage
        if stage is None:
            raise TrainingError(f"A process for trainings did not start: {said[0]}.")
        if kind == "failed":
            log = self._log(stage)
            raise TrainingError(f"The training {stage.name} failed: {said[0].rstrip('.')}. All that it said is in {log}.")
        if kind == "done":
            worker.stage = None
            progress.done(stage, said[0])
        else:
            progress.steps(stage, *said)

    def _log(self, stage: Stage) -> Path:
        return self.folder / LOGS / f"{stage.output.replace('/', '-')}.log"


class Progress:
    """A bar over the steps of all trainings, with those that are going on, and a line for each that is done."""

    def __init__(self, stages: Sequence[Stage]):
        self._at = {stage.name: (0, stage.steps) for stage in stages}
        self.bar = tqdm(total=sum(stage.steps for stage in stages), desc="Trainings", unit="step")
        if not self.bar.fp.isatty():  # a line now and then
            self.bar.mininterval = 30.0

    def steps(self, stage: Stage, step: int, steps: int) -> None:
        before, expected = self._at[stage.name]
        self._at[stage.name] = step, steps
        self.bar.total += steps - expected
        going = (f"{name} {done}/{of}" for name, (done, of) in self._at.items() if 0 < done < of)
        self.bar.set_postfix_str(", ".join(going), refresh=False)
        self.bar.update(step - before)

    def done(self, stage: Stage, seconds: float) -> None:
        _, steps = self._at[stage.name]
        self.steps(stage, steps, steps)
        with tqdm.external_write_mode():
            print(f"[{stage.name}] {seconds:.0f} s", flush=True)
