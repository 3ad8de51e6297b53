"""A study that is killed with SIGKILL: started again, it ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from helpers.studies import make_config, pretend

from trl_pafo.cli import main
from trl_pafo.study.study import Study

KILLED = """
import sys, time
from pathlib import Path
from helpers.studies import make_config, pretend
from trl_pafo.study import study
study.can_draw = lambda rows: False

def hang(options):
    if len(done) == 3:
        print("hangs", flush=True)
        time.sleep(600)

done = []
study.Study(make_config(Path(sys.argv[1]), seeds=[1]), attempt=pretend(hang, done))()
"""


def test_a_killed_study_goes_on_where_it_was(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "study")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None
    assert any(line == "hangs\n" for line in process.stdout)
    process.kill()
    process.wait()
    assert "2 of 4 cells are done" in (tmp_path / "study/study.md").read_text()
    done = []
    config = make_config(tmp_path / "study", seeds=[1])
    Study(config, attempt=pretend(done=done))()
    assert done == [{**cell.options, "output_dir": str(tmp_path / "study" / cell.folder / "run")} for cell in config.cells[2:]]
    Study(make_config(tmp_path / "undisturbed", seeds=[1]), attempt=pretend())()
    for name in ("study.md", "study.csv", "study.tex"):
        assert (tmp_path / "study" / name).read_text() == (tmp_path / "undisturbed" / name).read_text()


@pytest.mark.slow
def test_a_study_of_real_runs_that_is_killed_in_a_training_ends_as_an_undisturbed_one(encoder, training, tmp_path):
    """The killed study's process for its run ends with it, and its checkpoint is used."""
    run = {**training, "save_strategy": "steps", "save_steps": 1, "max_steps": 8, "num_history": 1, "num_resamples": 50}
    run |= {"reference_steps": [1], "model_name_or_path": encoder}
    data = {"source": "styles", "train_users": 10, "test_users": 12, "pairs_per_user": 2, "context_pairs": 2}
    data |= {"minority_ratio": 0.3, "validation_share": 0.3, "validation_users": 8}
    study = {"run": run, "methods": ["bradley_terry"], "data": {"styles": data}, "seeds": [1, 2]}

    def start(folder: Path) -> list[str]:
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study | {"output_dir": str(folder)}))
        return ["study", "--config", str(tmp_path / "study.yaml")]

    process = subprocess.Popen([sys.executable, "-m", "trl_pafo.cli", *start(tmp_path / "killed")])
    log = tmp_path / "killed/cells/styles/default/population0-seed2/run.log"
    while not log.exists() or "[personalized_bt@1]\n" not in log.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert main(start(tmp_path / "killed")) == 0
    assert "[prepare] done before, kept" in log.read_text()
    assert main(start(tmp_path / "undisturbed")) == 0
    tables = [pd.read_csv(tmp_path / name / "study.csv").drop(columns="seconds") for name in ("killed", "undisturbed")]
    pd.testing.assert_frame_equal(*tables)
    assert set(tables[0]["runs"]) == {2}
