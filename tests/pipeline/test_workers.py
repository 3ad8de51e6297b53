"""Trainings in processes: which are side by side, what is said of one that fails, and that none outlives its run."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe, get_context
from pathlib import Path

import pytest
from helpers import light_worker
from helpers.light_worker import options, stage

from trl_pafo.errors import TrainingError
from trl_pafo.pipeline import workers
from trl_pafo.pipeline.worker import Job
from trl_pafo.storage.run_folder import RunFolder

RUN = """
import signal
import sys
from pathlib import Path
from helpers import light_worker
from trl_pafo.pipeline import workers
from trl_pafo.pipeline.worker import Job
from trl_pafo.storage.run_folder import RunFolder

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where a shell starts the tests in the background
    workers.serve = light_worker.serve
    folder = RunFolder(sys.argv[1])
    with folder.locked(), workers.Workers(folder, 2, 1, light_worker.options(folder.path)) as found:
        found.do([light_worker.stage("waits-1"), light_worker.stage("waits-2")])
"""


@pytest.fixture
def do(tmp_path, monkeypatch):
    """Do stages, two at once; return what they noted."""
    monkeypatch.setattr(workers, "serve", light_worker.serve)
    folder = RunFolder(tmp_path / "run")

    def all_of(*stages, num=2):
        with workers.Workers(folder, num, 3, options(folder.path)) as found:
            found.do(stages)
        return notes(folder.path)

    return all_of


def notes(folder: Path) -> list[str]:
    path = folder / "notes"
    return path.read_text().splitlines() if path.exists() else []


def test_trainings_go_side_by_side_and_those_that_wait_for_others_after_them(do, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = do(stage("meets-other"), stage("student", "last", "meets-other"), stage("other"), stage("last"))
    assert found.index("end last") < next(i for i, note in enumerate(found) if note.startswith("begin student"))
    assert len(found) == 8
    begun = [note.split() for note in found if note.startswith("begin")]
    assert len({pid for *_, pid, _ in begun}) == 2  # a process goes on with the next
    assert {threads for *_, threads in begun} == {"3"}
    assert os.environ["OMP_NUM_THREADS"] == "7"
    said, bar = capsys.readouterr()
    assert "48/48" in bar  # of 12 steps each, where 10 were expected
    assert said.startswith(f"4 trainings, 2 at once with 3 threads each; what they say is in {tmp_path / 'run/logs'}\n")
    assert "[student] 0 s\n" in said
    assert (tmp_path / "run/logs/models-student.log").read_text().startswith("training student\n")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("fails", r"The training fails failed: There are no pairs\. All that it said is in .*run/logs/models-fails\.log"),
        ("breaks", "The training breaks failed: RuntimeError: no memory"),
        ("dies", "The training dies failed: its process was killed, as where memory runs out"),
    ],
)
def test_one_that_fails_is_named_and_stops_the_others(do, name, match, tmp_path):
    with pytest.raises(TrainingError, match=match):
        do(stage("waits"), stage("meets-waits"), stage(name, "meets-waits"), stage("never", name))
    found = notes(tmp_path / "run")
    assert "removed waits" in found
    assert not [note for note in found if "never" in note]
    assert ("Traceback" in (tmp_path / f"run/logs/models-{name}.log").read_text()) == (name != "dies")


def test_files_that_changed_meanwhile_are_told(do):
    with pytest.raises(TrainingError, match="changed after the run was started"):
        do(stage("other", inputs={"data": "of before"}))


def test_a_second_signal_does_not_end_the_removing(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    process = get_context("spawn").Process(target=light_worker.serve, args=((ends := Pipe())[1],))
    process.start()
    ends[0].send(options(folder))
    ends[0].send(Job("waits", stage("waits").digest, str(folder / "log")))
    for note in ("begin", "removes"):
        wait_until(lambda note=note: any(found.startswith(note) for found in notes(folder)))
        process.terminate()
    process.join()
    assert notes(folder)[1:] == ["removes waits", "removed waits"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_none_outlives_its_run(tmp_path, number):
    script, folder = tmp_path / "script.py", tmp_path / "run"
    script.write_text(RUN)
    process = subprocess.Popen([sys.executable, str(script), str(folder)], env={**os.environ, "PYTHONPATH": ":".join(sys.path)})
    wait_until(lambda: len(notes(folder)) == 2 or process.poll() is not None)
    process.send_signal(number)
    process.wait(60)
    pids = [int(note.split()[2]) for note in notes(folder) if note.startswith("begin")]
    assert len(pids) == 2
    for pid in pids:
        wait_until(lambda pid=pid: not is_alive(pid), seconds=30)
    removed = [note for note in notes(folder) if note.startswith("removed")]
    assert len(removed) == (2 if number == signal.SIGINT else 0)
    with RunFolder(folder).locked():  # nothing is in the way of the next run
        pass


def wait_until(happened, seconds=120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
