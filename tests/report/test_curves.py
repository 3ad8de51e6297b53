"""Curves of a training by group: what is drawn is what the trainer logged."""

import json
from dataclasses import replace

import numpy as np
import pytest

from trl_pafo.report.curves import curves, draw_curves

NAN = float("nan")


def write_log(record, method, log):
    folder = record.folder / "models" / method
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))


def test_each_point_is_the_mean_of_a_tenth_of_the_logs():
    values = np.random.default_rng(0).uniform(size=30)
    log = [{"step": 5 * i, "accuracy/a": value, "accuracy/b": NAN if i % 2 else 0.25} for i, value in enumerate(values)]
    log += [{"step": 150, "train_runtime": 1.0}, {"step": 150, "eval_accuracy/a": 0.75}]
    a, a_held_out, b = draw_curves(log, ["a", "b"]).axes[0].lines
    np.testing.assert_allclose(a.get_ydata(), values.reshape(10, 3).mean(axis=1))
    np.testing.assert_allclose(a.get_xdata(), 5 * np.arange(30).reshape(10, 3).mean(axis=1))
    assert (a_held_out.get_label(), *a_held_out.get_xydata()[0]) == ("a, held out", 150, 0.75)
    assert set(b.get_ydata()) == {0.25}


@pytest.mark.parametrize("log", [[], [{"step": 9, "loss": 0.5, "accuracy/majority": NAN}]])
def test_reference_and_student_have_a_picture_each_where_a_group_was_logged(record, log, tmp_path):
    record = replace(record, folder=tmp_path)
    write_log(record, "pafo", [{"step": 1, "accuracy/majority": 0.5}, {"step": 2, "accuracy/minority": 1.0}])
    write_log(record, "personalized_bt", log)
    section = curves(record)
    assert [picture.name for picture in section.pictures] == ["training_pafo"]
    assert section.missing == [
        "Accuracy of personalized BT while it was trained: its trainer logged none of a group. Set logging_steps below the number of steps."
    ]


def test_a_run_whose_models_are_gone_says_so(record, tmp_path):
    section = curves(replace(record, folder=tmp_path))
    assert len(section.missing) == 2
    assert not section.pictures
    assert not section.text
