import json

import pytest
from helpers.fake_runs import make_run

from trl_pafo.cli import main
from trl_pafo.report.sections import accuracy_pictures


def test_a_run_and_a_comparison(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trl_pafo.report.page.SECTIONS", (accuracy_pictures,))  # the others have tests of their own
    folders = [str(make_run(tmp_path / name, methods=("personalized_bt", "pafo"), seed=i)) for i, name in enumerate("ab")]
    assert main(["report", folders[0], "--inspect", "false"]) == 0
    assert f"Report:   {folders[0]}/report.html" in capsys.readouterr().out
    assert (tmp_path / "a/report_pictures/majority_minority.png").exists()
    assert main(["report", *folders, "--output", str(tmp_path / "both.html")]) == 0
    assert "Comparison of 2 runs" in (tmp_path / "both.html").read_text(encoding="utf-8")


def test_errors_are_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no results.json" in capsys.readouterr().err
    assert main(["report", "a", "b"]) == 1
    assert "--output FILE.html" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert capsys.readouterr().err == "trl-pafo report: the following arguments are required: RUN\n"


@pytest.mark.slow
def test_a_real_run_is_reported_and_its_configuration_makes_it_again(encoder, tmp_path):
    """`run`, `report`, and `run` with the YAML of the page: the second manifest asks for the same stages as the first."""
    flags = ["--model_name_or_path", encoder, "--train_users", "10", "--test_users", "10", "--pairs_per_user", "2"]
    flags += ["--minority_ratio", "0.3", "--num_history", "1", "--max_steps", "2", "--per_device_train_batch_size", "4"]
    flags += ["--max_length", "256", "--num_resamples", "50", "--logging_steps", "1", "--learning_rate", "0.01"]
    how = [
        "--use_cpu",
        "true",
        "--bf16",
        "false",
        "--report_to",
        "none",
        "--save_strategy",
        "no",
        "--gradient_checkpointing",
        "false",
    ]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["run", *flags, *how, "--output_dir", str(first)]) == 0
    assert main(["report", str(first)]) == 0
    page = (first / "report.html").read_text(encoding="utf-8")
    for said in ("own history helps", "Pairs that flipped", "teacher of minority", "PAFO against personalized BT"):
        assert said.lower() in page.lower()
    assert 'class="missing"' not in page

    from trl_pafo.report.records import read_record
    from trl_pafo.report.reproduce import as_yaml, run_config

    config = tmp_path / "run.yaml"
    config.write_text(as_yaml(run_config(read_record(first))), encoding="utf-8")
    assert main(["run", "--config", str(config), *how[:2], *how[4:], "--output_dir", str(second)]) == 0
    stages = [json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["stages"] for folder in (first, second)]
    assert {name: stage["digest"] for name, stage in stages[0].items()} == {n: s["digest"] for n, s in stages[1].items()}
    results = [json.loads((folder / "results/results.json").read_text(encoding="utf-8"))["methods"] for folder in (first, second)]
    assert results[0]["pafo"]["overall"] == results[1]["pafo"]["overall"]
