"""A run of a study: in a process of its own, beside the runs of other settings."""

import errno
import json
import os

import pytest
from helpers.small_runs import train_nothing
from safetensors import SafetensorError

from trl_pafo.errors import ConfigError, DataError, RunFolderError, TeacherError
from trl_pafo.study.doing import RunFailedError
from trl_pafo.study.process import do_run, donors_of, is_of_run, run_apart

DATA = {"source": "styles", "train_users": 10, "test_users": 10, "pairs_per_user": 2, "context_pairs": 2, "minority_ratio": 0.3}


@pytest.fixture
def options(encoder, training, tmp_path):
    run = {**training, **DATA, "num_history": 1, "reference_steps": [1], "teacher_folds": 1, "num_resamples": 50}
    run |= {"model_name_or_path": encoder, "methods": ["personalized_bt", "pafo"], "validation_share": 0.3}

    def of(setting, place="population0-seed1", **more):
        folder = tmp_path / "cells/styles" / setting / place
        folder.mkdir(parents=True, exist_ok=True)
        return run | {"output_dir": str(folder / "run")} | more

    return of


def test_what_a_setting_does_not_change_is_trained_once(options, monkeypatch):
    trained = train_nothing(monkeypatch)
    do_run(options("default"))
    assert trained == ["personalized BT, x1", "Teacher of majority", "Teacher of minority", "PAFO"]
    trained.clear()
    do_run(options("alpha_0", alpha=0))
    assert trained == ["PAFO"]


def test_other_seeds_and_other_data_give_nothing(tmp_path):
    for place in ("a/default/1", "a/other/1", "a/default/2", "b/default/1"):
        (tmp_path / "cells" / place / "run").mkdir(parents=True)
    assert donors_of(tmp_path / "cells/a/default/1/run") == (tmp_path / "cells/a/other/1/run",)


@pytest.mark.parametrize(
    ("error", "unprepared", "prepared"),
    [
        (DataError("line 3: not JSON"), True, False),  # of prepared data: of what a method needs of them
        (ConfigError("only one group"), False, False),
        (TeacherError("a reward is not finite"), False, False),
        (MemoryError(), False, False),
        (RunFolderError("holds something else"), True, True),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), True, True),
        (SafetensorError("Error while serializing: No space left on device (os error 28)"), True, True),
    ],
)
def test_what_a_run_fails_by_whatever_its_methods(error, unprepared, prepared, tmp_path):
    assert is_of_run(error, tmp_path) is unprepared
    (tmp_path / "data").mkdir()
    assert is_of_run(error, tmp_path) is prepared


def test_what_went_wrong_in_a_process_is_one_line_and_the_log_says_all(options, tmp_path):
    log = tmp_path / "run.log"
    with pytest.raises(RunFailedError, match="nowhere") as caught:  # with any method
        run_apart(options("default", data_path="nowhere", source="dsp"), log)
    assert "\n" not in str(caught.value)
    assert "Traceback" in log.read_text()
    assert not json.loads((tmp_path / "cells/styles/default/population0-seed1/run/manifest.json").read_text())["stages"]
