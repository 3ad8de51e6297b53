"""The guide of docs/data.md, from a survey to a report, command by command, on a tiny model."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from trl_pafo.cli import main

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
GUIDE = PAGE.split("\n## From a survey to a fair model\n")[1].split("\n## ")[0]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
TINY = ["--max_steps", "1", "--reference_steps", "1", "--num_resamples", "20", "--report_to", "none", "--bf16", "false"]


def commands():
    lines = "".join(text for kind, text in BLOCKS if kind == "bash").splitlines()
    return [shlex.split(line) for line in lines]


@pytest.fixture
def survey(tmp_path, monkeypatch):
    """In a folder with the survey that the guide makes."""
    [script] = [text for kind, text in BLOCKS if kind == "python"]
    monkeypatch.chdir(tmp_path)
    Path("survey.py").write_text(script)
    [python] = [command for command in commands() if command[0] == "python"]
    subprocess.run([sys.executable, *python[1:]], check=True)
    return tmp_path


def do(command, encoder, *more):
    """A command of the guide with a tiny model."""
    assert command[0] == "trl-pafo"
    return main([encoder if word == "minilm" else word for word in command[1:]] + list(more))


def test_the_guide(survey, encoder, short_report, capfd, caplog):
    prepare, run = (command for command in commands() if command[0] == "trl-pafo")
    assert do(prepare, encoder) == 0
    [expected] = [text for kind, text in BLOCKS if not kind]
    printed = capfd.readouterr().out + caplog.text
    for line in expected.splitlines():
        assert line in printed
    layers = run.index("--num_hidden_layers")
    run[layers + 1] = "1"
    assert do(run, encoder, *TINY) == 0
    printed = capfd.readouterr().out
    assert "Report:  runs/survey/report.html" in printed
    results = json.loads(Path("runs/survey/results/results.json").read_text())
    assert (results["majority"], results["minority"]) == ("majority", "minority")
    assert results["methods"]["pafo"]["num_users"] == 8
    assert "none of them among these, on prompts that were judged in training too" in Path("runs/survey/report.html").read_text()


def test_the_same_people_on_new_questions_and_some_who_answered_one(survey, encoder, short_report, capfd):
    rows = pd.read_csv("survey.csv")
    once = rows[::10][:2].assign(user_id=["once 0", "once 1"], preferred="a")
    pd.concat([rows, once]).to_csv("survey.csv", index=False)
    flags = ["--hold_out", "pairs", "--min_pairs", "1", "--distill_anyway", "true", "--minority_quantile", "0.25"]
    run = next(command for command in commands() if command[:2] == ["trl-pafo", "run"])
    run[run.index("--num_hidden_layers") + 1] = "1"
    assert do(run, encoder, *TINY, *flags) == 0
    results = json.loads(Path("runs/survey/results/results.json").read_text())
    assert {"once 0", "once 1"} & set(pd.read_parquet("runs/survey/data/train.parquet")["user"])
    summary = results["methods"]["pafo"]
    assert (summary["num_users"], summary["num_units"]) == (40, summary["num_pairs"])
    assert summary["overall"]["low"] < summary["overall"]["high"]
    assert summary["user_gini"]["low"] is None
    assert f"{summary['num_units']} prompts of 40 known users" in capfd.readouterr().out
    assert "who are among these, on prompts that they did not judge in training" in Path("runs/survey/report.html").read_text()
