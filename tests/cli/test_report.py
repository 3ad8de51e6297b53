import pytest
from helpers.fake_runs import make_run

from trl_pafo.cli import main
from trl_pafo.report.sections import groups


def test_the_report_of_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trl_pafo.report.page.SECTIONS", (groups,))  # the others have tests of their own
    folder = str(make_run(tmp_path / "run", methods=("personalized_bt", "pafo")))
    assert main(["report", folder]) == 0
    assert f"Report: {folder}/report.html" in capsys.readouterr().out
    assert main(["report", folder, "--output", str(tmp_path / "other.html")]) == 0
    assert "Report of run" in (tmp_path / "other.html").read_text(encoding="utf-8")


def test_errors_are_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "results/results.json is missing" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert capsys.readouterr().err == "trl-pafo report: the following arguments are required: RUN\n"


@pytest.mark.slow
def test_the_report_of_a_real_run_misses_nothing(encoder, tmp_path):
    flags = ["--model_name_or_path", encoder, "--train_users", "10", "--test_users", "10", "--pairs_per_user", "2"]
    flags += ["--minority_ratio", "0.3", "--num_history", "1", "--max_steps", "2", "--per_device_train_batch_size", "4"]
    flags += ["--max_length", "256", "--num_resamples", "50", "--logging_steps", "1", "--learning_rate", "0.01"]
    flags += ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--save_strategy", "no"]
    folder = tmp_path / "run"
    assert main(["run", *flags, "--gradient_checkpointing", "false", "--output_dir", str(folder)]) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    for said in ("Pairs that flipped", "PAFO against personalized BT", "max_steps: 2"):
        assert said.lower() in page.lower()
    assert 'class="missing"' not in page
