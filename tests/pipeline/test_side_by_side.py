"""Trainings side by side, or by several commands: the same results as one after the other, and what is told where something is missing."""

import pytest
from helpers.small_runs import assert_outcome, outcome, small_run, train_nothing

from trl_pafo.errors import ConfigError, RunFolderError, TrainingError
from trl_pafo.pipeline.run import Run
from trl_pafo.storage.files import alone

OPTIONS = {"methods": ["personalized_bt", "pafo"], "reference_steps": [1, 2]}


@pytest.fixture
def run(encoder, training, tmp_path, short_report):
    return lambda name="run", **options: small_run(tmp_path / name, training, encoder, **{**OPTIONS, **options})


@pytest.mark.slow
def test_results_are_those_of_trainings_in_turn(run, tmp_path, capsys):
    run("in_turn")()
    folder, in_turn = tmp_path / "run", outcome(tmp_path / "in_turn")
    assert len(in_turn["weights"]) == 6  # two of the path, and that which is chosen
    first = run(trainings_at_once=2)
    blocked = folder / "teacher_margins"
    blocked.write_text("in the way of the student, which is the last training")
    with pytest.raises(TrainingError, match=r"The training pafo failed: .*logs/models-pafo\.log"):
        first()
    assert "Traceback" in (folder / "logs/models-pafo.log").read_text()
    blocked.unlink()
    capsys.readouterr()
    run(trainings_at_once=2)()
    said = capsys.readouterr().out
    assert "[personalized_bt@2] done before, kept" in said
    assert "1 trainings, 1 at once with 1 thread each" in said
    assert_outcome(folder, in_turn)
    assert not list(folder.rglob("*.partial"))


def test_stages_by_several_commands_make_the_same_run(run, tmp_path, capsys):
    one = {"methods": ["pafo"], "reference": "pafo"}
    run("in_turn", **one)()
    run(**one).do_only(["prepare"])
    said = capsys.readouterr().out
    assert "Trainings for --only: teacher:majority teacher:minority pafo" in said
    with pytest.raises(
        ConfigError, match=r"--only pafo: it needs stages that are not done in .*: teacher:majority, teacher:minority"
    ):
        run(**one).do_only(["pafo"])
    run(**one).do_only(["teacher:minority", "teacher:majority", "pafo"])
    run(**one)()
    assert "[pafo] done before, kept" in capsys.readouterr().out
    assert_outcome(tmp_path / "run", outcome(tmp_path / "in_turn"))


def test_what_cannot_be_done_alone_is_told(run, tmp_path, monkeypatch):
    trained = train_nothing(monkeypatch)
    with pytest.raises(ConfigError, match="is not prepared: do the same with --only prepare first"):
        run().do_only(["pafo"])
    run().do_only(["prepare", "personalized_bt@2"])
    assert trained == ["personalized BT, x2"]
    with pytest.raises(
        ConfigError, match=r"--only magic: this run has no such stage. Choose of: prepare, personalized_bt@1, personal"
    ):
        run().do_only(["magic"])
    monkeypatch.setattr("trl_pafo.storage.run_folder._SOON", 0.05)
    with alone(tmp_path / "run", ""), pytest.raises(RunFolderError, match="Another run is running in"):
        run().do_only(["personalized_bt@1"])
    assert trained == ["personalized BT, x2"]


def test_nothing_is_pushed_by_a_single_stage(run, monkeypatch):
    train_nothing(monkeypatch)
    monkeypatch.setattr("trl_pafo.pipeline.run.create_repo", lambda *args, **options: pytest.fail("the Hub was asked"))
    assert isinstance(run(push_to_hub=True, only=["prepare"]), Run)


def test_no_training_at_once_is_refused(run):
    with pytest.raises(ConfigError, match="`trainings_at_once` must be at least 1, got 0"):
        run(trainings_at_once=0)
