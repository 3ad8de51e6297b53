"""The command line, as a user types it."""

import json
import subprocess
import sys
import time

import pytest
from conftest import make_model, make_pairs

from trl_pafo import __version__
from trl_pafo.cli import COMMANDS, main

TINY = [
    "--max_steps",
    "2",
    "--per_device_train_batch_size",
    "4",
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


def test_help_lists_the_commands_without_heavy_imports():
    code = (
        "import sys; from trl_pafo.cli import main; main(['--help']); "
        "assert not {'torch', 'transformers', 'trl', 'matplotlib'} & set(sys.modules), 'heavy import'"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 5
    for name in COMMANDS:
        assert f"  {name}" in done.stdout


def test_version_and_unknown_command(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"trl-pafo {__version__}"
    assert main(["dance"]) == 2
    assert f"choose one of {', '.join(COMMANDS)}" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_flags(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: trl-pafo {name}" in capsys.readouterr().out


def test_module_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "trl_pafo.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"trl-pafo {__version__}"


def test_prepare_reward_evaluate_score(encoder, tmp_path, capsys):
    """The commands one after the other, each from the files of the one before."""
    data, out = tmp_path / "data", tmp_path / "model"
    users = [
        "--train_users",
        "10",
        "--test_users",
        "10",
        "--minority_ratio",
        "0.3",
        "--pairs_per_user",
        "2",
        "--context_pairs",
        "2",
    ]
    assert main(["prepare", "--model_name_or_path", encoder, "--output_dir", str(data), "--num_history", "1", *users]) == 0
    teachers = {g: make_model("encoder", tmp_path / g, seed=s) for s, g in enumerate(["majority", "minority"], 1)}
    flags = ["--model_name_or_path", encoder, "--dataset_name", str(data), "--max_length", "256"]
    assert main(["reward", *flags, "--teachers", json.dumps(teachers), "--output_dir", str(out), *TINY]) == 0
    assert (out / "model.safetensors").exists()

    evaluate = ["evaluate", "--model_name_or_path", str(out), "--reference", teachers["majority"], "--dataset_name", str(data)]
    assert main([*evaluate, "--output_dir", str(tmp_path / "eval"), "--num_resamples", "50"]) == 0
    assert "worst 10 % of users" in capsys.readouterr().out
    results = json.loads((tmp_path / "eval/results.json").read_text())
    assert set(results["methods"]) == {"model", "reference"}
    assert main([*evaluate, "--output_dir", str(tmp_path / "eval")]) == 1
    assert "nothing is overwritten" in capsys.readouterr().err

    rows = [
        {"prompt": r["prompt"], "response": r["chosen"], "history": r["history"], "id": i} for i, r in enumerate(make_pairs(2))
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    score = ["score", "--model_name_or_path", str(out), "--input", str(tmp_path / "in.jsonl")]
    assert main([*score, "--output", str(tmp_path / "out.jsonl")]) == 0
    scored = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [r["id"] for r in scored] == list(range(len(rows)))
    assert all(isinstance(r["reward"], float) for r in scored)


def test_run_from_a_yaml_file(encoder, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model_name_or_path: {encoder}\noutput_dir: {tmp_path / 'run'}\nsource: styles\ntrain_users: 10\ntest_users: 10\n"
        "minority_ratio: 0.3\npairs_per_user: 2\ncontext_pairs: 2\nnum_history: 1\nnum_resamples: 50\nmethods: [personalized_bt, pafo]\n"
    )
    assert main(["run", "--config", str(config), *TINY]) == 0
    out = capsys.readouterr().out
    assert "PAFO against personalised BT:" in out
    assert "majority_minority.png" in out
    assert main(["run", "--config", str(config), *TINY, "--alpha", "0.9"]) == 1
    assert "alpha: 0.1 -> 0.9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["run", "--config", "missing.yaml"], "missing.yaml: no such file"),
        (["score", "--model_name_or_path", "nowhere/x", "--input", "missing.jsonl"], "missing.jsonl: no such file"),
        (["prepare", "--output_dir", "x"], "Give --output_dir and --model_name_or_path"),
        (["reward", "--output_dir", "x", "--use_cpu", "true", "--model_name_or_path", "nowhere/x"], "Give --dataset_name"),
        (["run", "--output_dir", "x", "--use_cpu", "true"], "Give --model_name_or_path"),
        (["run", "--output_dir", "x", "--use_cpu", "true", "--alpha", "2"], r"`alpha` must be in \[0, 1\]"),
        (["run", "--output_dir", "x", "--use_cpu", "true", "--model_name_or_path", "nowhere/x"], "nowhere/x"),
    ],
)
def test_errors_are_one_line_and_name_the_fix(argv, match, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"trl-pafo {argv[0]}: ")
    import re

    assert re.search(match, error)
