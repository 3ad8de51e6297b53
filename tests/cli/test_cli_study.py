"""`trl-pafo study`, as a user types it."""

import pytest
import yaml
from helpers.studies import pretend

from trl_pafo.cli import main

STUDY = {"methods": ["pafo"], "data": {"styles": {"source": "styles"}}, "model_name_or_path": "m", "use_cpu": True, "bf16": False}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr("trl_pafo.study.study.can_draw", lambda rows: False)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | {"output_dir": str(tmp_path / "study")}))
    return str(path)


def test_a_study_in_parts_and_joined_with_others(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("trl_pafo.study.study.Study.__init__.__defaults__", (None, (), pretend()))
    assert main(["study", "--config", config, "--cells", "1/1"]) == 0
    assert f"Table: {tmp_path}/study/study.md" in capsys.readouterr().out
    assert main(["study", "--cells_from", str(tmp_path / "study"), "--output_dir", str(tmp_path / "joined")]) == 0
    assert (tmp_path / "joined/study.csv").read_text() == (tmp_path / "study/study.csv").read_text()


def test_a_method_that_fails_is_status_1(config, monkeypatch, capsys):
    monkeypatch.setattr("trl_pafo.study.study.Study.__init__.__defaults__", (None, (), pretend(lambda options: "No memory.")))
    assert main(["study", "--config", config]) == 1
    assert "trl-pafo study: 1 of 1 cells have a method that failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ([], "Give --config: the YAML file of a study; or --cells_from and --output_dir"),
        (["--cells_from", "x", "--output_dir", "y", "--cells", "1/2"], "--cells: no effect without --config"),
        (["--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_what_cannot_be_is_one_line(flags, match, capsys):
    assert main(["study", *flags]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("trl-pafo study: ")
    assert match in line
