"""Outputs of the commands that train nothing where the disk is full: an error in one line, and what was there is still there."""

import json

import numpy as np
import pytest
from helpers.fake_runs import make_run
from helpers.parts import files_of, full_after, make_pairs

from trl_pafo.cli import main
from trl_pafo.report.sections import groups


def refused(argv, capsys, match):
    assert main([str(word) for word in argv]) == 1
    error = capsys.readouterr().err
    assert f"trl-pafo {argv[0]}: " in error
    assert match in error
    assert "Traceback" not in error


class TestEvaluate:
    @pytest.fixture
    def argv(self, encoder, tmp_path):
        make_pairs(history=0).to_json(tmp_path / "test.jsonl")
        flags = ["--dataset_name", tmp_path / "test.jsonl", "--num_resamples", 50, "--num_history", 0]
        return ["evaluate", "--model_name_or_path", encoder, *flags, "--output_dir", tmp_path / "out"]

    def test_full_disk(self, argv, tmp_path, capsys):
        with full_after(100):
            refused(argv, capsys, "File too large")
        assert [path.name for path in tmp_path.iterdir()] == ["test.jsonl"]
        assert main([str(word) for word in argv]) == 0
        assert (tmp_path / "out/results.json").exists()


class TestScore:
    def test_after_a_full_disk_it_goes_on(self, encoder, tmp_path, capsys):
        rows = [{"prompt": row["prompt"], "response": row["chosen"]} for row in make_pairs(num_users=8, history=0)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        argv = ["score", "--model_name_or_path", encoder, "--input", tmp_path / "rows.jsonl", "--batch_size", 1, "--output"]
        assert main([str(word) for word in [*argv, tmp_path / "whole"]]) == 0
        whole = (tmp_path / "whole").read_bytes()
        with full_after(2 * len(whole) // 3):  # in the second of three parts of 16 rows
            refused([*argv, tmp_path / "out"], capsys, "File too large")
        assert not (tmp_path / "out").exists()
        assert main([str(word) for word in [*argv, tmp_path / "out"]]) == 0
        assert "Going on after 16 of 40 rows" in capsys.readouterr().err
        assert (tmp_path / "out").read_bytes() == whole


class TestReport:
    def test_full_disk_leaves_the_report_before(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("trl_pafo.report.page.SECTIONS", (groups,))
        run = make_run(tmp_path / "run", methods=("personalized_bt", "pafo"))
        argv = ["report", run]
        assert main([str(word) for word in argv]) == 0
        before = files_of(run)
        with full_after(100):
            refused(argv, capsys, "File too large")
        assert files_of(run) == before


class TestPortfolio:
    @pytest.fixture
    def argv(self, tmp_path):
        prompts = np.random.default_rng(0).random((5, 4, 2)).tolist()
        (tmp_path / "candidates.jsonl").write_text("".join(json.dumps({"rewards": rewards}) + "\n" for rewards in prompts))
        options = ["--candidates", tmp_path / "candidates.jsonl", "--reward_names", "a", "b", "--output_dir", tmp_path / "out"]
        return ["portfolio", "build", *options]

    def test_full_disk(self, argv, tmp_path, capsys):
        with full_after(500):
            refused(argv, capsys, "File too large")
        kept = (tmp_path / "out/calls.jsonl").read_text()
        assert main([str(word) for word in argv]) == 0
        assert (tmp_path / "out/calls.jsonl").read_text().startswith(kept[: kept.rfind("\n") + 1])
