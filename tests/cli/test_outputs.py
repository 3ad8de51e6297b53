"""Outputs of the commands that train nothing where the disk is full: an error in one line, and the next try goes on."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_runs import make_run
from helpers.parts import files_of, full_after, make_pairs

from trl_pafo.cli import main
from trl_pafo.report.sections import groups


def evaluate(encoder):
    make_pairs(history=0).to_json("test.jsonl")
    flags = "--dataset_name test.jsonl --num_resamples 50 --num_history 0 --output_dir out"
    return ["evaluate", "--model_name_or_path", encoder, *flags.split()]


def score(encoder):
    rows = [{"prompt": row["prompt"], "response": row["chosen"]} for row in make_pairs(num_users=8, history=0)]
    with open("rows.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    flags = "--input rows.jsonl --batch_size 1 --output out"
    return ["score", "--model_name_or_path", encoder, *flags.split()]


def report(encoder):
    return ["report", str(make_run(Path("run"), methods=("personalized_bt", "pafo"))), "--output", "out.html"]


def portfolio(encoder):
    prompts = np.random.default_rng(0).random((5, 4, 2)).tolist()
    with open("candidates.jsonl", "w") as file:
        file.writelines(json.dumps({"rewards": rewards}) + "\n" for rewards in prompts)
    return "portfolio build --candidates candidates.jsonl --reward_names a b --output_dir out".split()


@pytest.mark.parametrize(("make", "room"), [(evaluate, 100), (score, 2700), (report, 100), (portfolio, 500)])
def test_a_full_disk(make, room, encoder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trl_pafo.report.page.SECTIONS", (groups,))
    argv = make(encoder)
    before = files_of(tmp_path)
    with full_after(room):
        assert main(argv) == 1
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trl-pafo ")]
    assert error.startswith(f"trl-pafo {argv[0]}: ")
    assert "File too large" in error
    assert files_of(tmp_path) | before == files_of(tmp_path)
    kept = Path("out/calls.jsonl").read_text() if make is portfolio else None
    assert make is portfolio or not {"out", "out.html"} & {path.name for path in tmp_path.iterdir()}
    assert main(argv) == 0
    said = capsys.readouterr().err
    if make is score:
        assert "Going on after 16 of 40 rows" in said
        assert len(Path("out").read_text().splitlines()) == 40
    if kept is not None:
        assert Path("out/calls.jsonl").read_text().startswith(kept[: kept.rfind("\n") + 1])
