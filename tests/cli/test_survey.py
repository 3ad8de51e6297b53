"""The guide from a survey to a report, command by command."""

import json
from pathlib import Path

import pandas as pd
import pytest
from helpers.guides import Guide


@pytest.fixture
def survey(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Guide("guide_survey.md")


def test_the_guide(survey, encoder, short_report, capfd, caplog):
    survey.do("prepare", encoder)
    printed = capfd.readouterr().out + caplog.text
    [said] = survey.said
    for line in said:
        assert line in printed
    survey.do("run", encoder)
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
    flags = ["--hold_out", "pairs", "--min_pairs", "1", "--minority_quantile", "0.25"]
    flags += ["--methods", "personalized_bt", "bradley_terry", "--reference_steps", "1"]
    survey.do("run", encoder, *flags)
    results = json.loads(Path("runs/survey/results/results.json").read_text())
    assert {"once 0", "once 1"} & set(pd.read_parquet("runs/survey/data/train.parquet")["user"])
    summary = results["methods"]["personalized_bt"]
    assert (summary["num_users"], summary["num_units"]) == (40, summary["num_pairs"])
    assert summary["overall"]["low"] < summary["overall"]["high"]
    assert summary["user_gini"]["low"] is None
    assert f"{summary['num_units']} prompts of 40 known users" in capfd.readouterr().out
    assert "who are among these, on prompts that they did not judge in training" in Path("runs/survey/report.html").read_text()
