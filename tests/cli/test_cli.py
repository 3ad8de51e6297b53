"""The command line, as a user types it."""

import errno
import json
import re
import subprocess
import sys
from importlib import import_module

import pytest
import yaml
from helpers.parts import files_of, full_after, make_model, make_pairs, make_teachers, remember_inputs
from trl import ModelConfig

from trl_pafo import __version__
from trl_pafo.cli import COMMANDS, TRAINING, main, parse
from trl_pafo.cli.training import training_parser
from trl_pafo.data.sources.registry import unused_options
from trl_pafo.evaluation.methods import RunArguments
from trl_pafo.pipeline.run_options import run_config
from trl_pafo.trainer.config import PAFOConfig

TINY = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
TINY += ["--save_strategy", "no", "--gradient_checkpointing", "false"]
USERS = ["--train_users", "10", "--test_users", "10", "--minority_ratio", "0.3", "--pairs_per_user", "2"]
USERS += ["--context_pairs", "2", "--num_history", "1"]


def test_version_and_unknown_command(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"trl-pafo {__version__}"
    assert main(["dance"]) == 2
    assert f"choose one of {', '.join(COMMANDS)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["run", "--optim", "adamww"], "argument --optim: invalid choice: 'adamww'"),
        (["prepare", "--train_users", "many"], "argument --train_users/--train-users: invalid int value: 'many'"),
        (["score", "--input"], "argument --input: expected one argument"),
        (["portfolio", "build", "--beta", "x"], "argument --beta: invalid float value: 'x'"),
        (["score", "--modle_name_or_path", "x"], "--modle_name_or_path is unknown. Did you mean --model_name_or_path?"),
        (["run", "--use_cpu", "true", "--bananas=3"], "--bananas is unknown. `trl-pafo run --help` lists the flags."),
        (["report", "runs/a", "--out_put", "x"], "--out_put is unknown. Did you mean --output?"),
        (["study", "--cells", "1/2", "--confg", "x"], "--confg is unknown. Did you mean --config?"),
        (["portfolio", "build", "--epsilom", "0.1"], "--epsilom is unknown. Did you mean --epsilon?"),
        (["score", "--input", "my", "file.jsonl", "x"], "'x' belongs to no flag. Put a value with blanks in quotes."),
        (["score", "--config"], "--config names no file."),
    ],
)
def test_a_flag_that_cannot_be_read_is_one_line_and_the_one_that_was_meant_is_named(argv, match, capsys):
    assert main(argv) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"trl-pafo {argv[0]}: {match}")


@pytest.mark.parametrize("command", TRAINING)
@pytest.mark.parametrize(
    ("flags", "trackers"),
    [
        (["--report_to", "wandb", "trackio"], ["wandb", "trackio"]),
        (["--config", "x.yaml"], ["wandb", "trackio"]),
        (["--config", "x.yaml", "--report_to", "wandb"], ["wandb"]),
        (["--config", "x.yaml", "--report_to", "none"], []),
    ],
)
def test_trackers_are_one_or_several(command, flags, trackers, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("report_to: [wandb, trackio]\n")
    parser = import_module(f"trl_pafo.cli.{command}").make_parser()
    parsed = parse(parser, ["--output_dir", "out", "--use_cpu", "true", *flags])
    assert [args.report_to for args in parsed if isinstance(args, PAFOConfig)] == [trackers]


@pytest.mark.parametrize("flag", [["--config", "x.yaml"], ["--config=x.yaml"]])
def test_a_key_of_a_file_that_is_unknown_is_named(flag, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("modle_name_or_path: a\ninput: b\n")
    assert main(["score", *flag]) == 2
    assert capsys.readouterr().err == "trl-pafo score: --modle_name_or_path is unknown. Did you mean --model_name_or_path?\n"


@pytest.mark.parametrize("command", ["portfolio", "prepare", "push", "report", "study"])
def test_what_works_in_one_process_says_so_under_a_launcher(command, capsys, monkeypatch, tmp_path):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main([command, "--output_dir", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"trl-pafo {command} works in one process. Start it without a launcher")
    monkeypatch.delenv("LOCAL_RANK")  # some clusters set the others for a machine
    main([command, "--no_such_flag"])
    assert "launcher" not in capsys.readouterr().err


def test_module_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "trl_pafo.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"trl-pafo {__version__}"


def test_what_is_read_and_what_is_warned_of_is_said_in_a_line_each(tmp_path):
    folder = remember_inputs(make_model("encoder", tmp_path / "model"), num_history=1)
    make_pairs(1, 2).to_json(tmp_path / "in.jsonl")
    with open(tmp_path / "in.jsonl", "a") as file:
        file.write(json.dumps({"prompt": "what", "response": "yes"}) + "\n")
    argv = ["score", "--model_name_or_path", folder, "--input", "in.jsonl"]
    done = subprocess.run([sys.executable, "-m", "trl_pafo.cli", *argv], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert len(done.stdout.splitlines()) == 3
    read, warned = done.stderr.splitlines()
    assert read == "in.jsonl: 3 rows read."
    assert warned.startswith("1 of 3 rows have no history (the first: in.jsonl, line 3)")


def test_prepare_reward_evaluate_score(encoder, tmp_path, capsys):
    """The commands one after the other, each from the files of the one before."""
    data, out = tmp_path / "data", tmp_path / "model"
    assert main(["prepare", "--model_name_or_path", encoder, "--output_dir", str(data), *USERS]) == 0
    teachers = make_teachers("encoder", tmp_path)
    flags = ["--model_name_or_path", encoder, "--dataset_name", str(data), "--max_length", "256"]
    assert main(["reward", *flags, "--teachers", json.dumps(teachers), "--output_dir", str(out), *TINY]) == 0
    assert (out / "model.safetensors").exists()

    evaluate = ["evaluate", "--model_name_or_path", str(out), "--reference", teachers["majority"], "--dataset_name", str(data)]
    assert main([*evaluate, "--output_dir", str(tmp_path / "eval"), "--num_resamples", "50"]) == 0
    assert "worst 10 % of users" in capsys.readouterr().out
    results = json.loads((tmp_path / "eval/results.json").read_text())
    assert set(results["methods"]) == {"model", "majority"}
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


class TestFullDisk:
    """What was there is still there: the disk is full after so many bytes a file."""

    def test_run(self, encoder, tmp_path, capsys):
        argv = ["run", "--model_name_or_path", encoder, *USERS, "--num_resamples", "50", *TINY, "--reference", "bradley_terry"]
        argv += ["--output_dir", str(tmp_path / "run"), "--methods", "bradley_terry"]
        assert main(argv) == 0
        before = files_of(tmp_path / "run")
        del before["run.yaml"]  # the options of the run that was begun last
        with full_after(40_000):  # less than a model
            assert main([*argv, "personalized_bt"]) == 1
        assert f"There is no room to write {tmp_path / 'run'}/" in capsys.readouterr().err
        assert files_of(tmp_path / "run") | before == files_of(tmp_path / "run")
        assert main([*argv, "personalized_bt"]) == 0
        said = capsys.readouterr().out
        assert "[bradley_terry] done before, kept\n[personalized_bt@0.5]\n" in said
        for line in ("personalized BT, held out  balanced", "personalized BT, test  balanced", "The reference is personalized"):
            assert f"\n{line}" in said

    def test_reward(self, encoder, pairs, tmp_path, capsys):
        pairs.select_columns(["prompt", "chosen", "rejected"]).to_json(tmp_path / "pairs/train.jsonl")
        argv = ["reward", "--model_name_or_path", encoder, "--dataset_name", str(tmp_path / "pairs"), "--eos_token", "[SEP]"]
        argv += ["--output_dir", str(tmp_path / "out"), "--max_length", "256", *TINY]
        assert main(argv) == 0
        before = files_of(tmp_path / "out")
        size = len(before["model.safetensors"]) - 1
        with full_after(size):
            assert main([*argv, "--learning_rate", "0.1"]) == 1
        assert f"There is no room to write {tmp_path / 'out'}: the disk is full" in capsys.readouterr().err
        assert files_of(tmp_path / "out")["model.safetensors"] == before["model.safetensors"]


def test_errors_of_the_operating_system_are_one_line(capsys, monkeypatch):
    def refuse(*given):
        raise OSError(errno.EACCES, "Permission denied", "out/a")

    monkeypatch.setattr("trl_pafo.evaluation.score_file.score_file", refuse)
    assert main(["score"]) == 1
    assert capsys.readouterr().err == "trl-pafo score: [Errno 13] Permission denied: 'out/a'\n"


def test_an_interrupted_command_ends_in_a_line(capsys, monkeypatch):
    def interrupt(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("trl_pafo.evaluation.score_file.score_file", interrupt)
    assert main(["score"]) == 130
    assert capsys.readouterr().err == "trl-pafo score: interrupted.\n"


def test_errors_of_libraries_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("trl_pafo.evaluation.score_file.score_file", lambda *given: {}["missing"])
    with pytest.raises(KeyError):
        main(["score"])


def test_run_from_a_yaml_file(encoder, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model_name_or_path: {encoder}\noutput_dir: {tmp_path / 'run'}\nsource: styles\ntrain_users: 10\ntest_users: 10\n"
        "minority_ratio: 0.3\npairs_per_user: 2\ncontext_pairs: 2\nnum_history: 1\nnum_resamples: 50\nmethods: [personalized_bt, pafo]\n"
    )
    flags = [*TINY, "--learning_rate", "1e-3", "--reference_steps", "1", "--teacher_folds", "1"]
    assert main(["run", "--config", str(config), *flags]) == 0
    out = capsys.readouterr().out
    assert "PAFO against personalized BT:" in out
    assert "majority_minority.png" in out
    saved = (tmp_path / "run/run.yaml").read_text(encoding="utf-8")
    assert main(["run", "--config", str(config), *flags, "--alpha", "0.9"]) == 1
    assert "alpha: 0.1 -> 0.9" in capsys.readouterr().err
    assert (tmp_path / "run/run.yaml").read_text(encoding="utf-8") == saved
    stages = json.loads((tmp_path / "run/manifest.json").read_text())["stages"]
    (tmp_path / "run").rename(tmp_path / "again")
    assert main(["run", "--config", str(tmp_path / "again/run.yaml"), "--output_dir", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again/manifest.json").read_text())["stages"] == stages
    assert re.findall(r"^\[(.+?)\](.*)$", capsys.readouterr().out, re.M) == [(name, " done before, kept") for name in stages]


def test_the_saved_configuration_has_every_option_that_decides(tmp_path):
    parser = training_parser((RunArguments,), (ModelConfig,), None, short=False)
    flags = ["--output_dir", "somewhere", "--use_cpu", "true", "--methods", "personalized_bt", "pafo", "--distill_anyway", "true"]
    flags += ["--teachers", '{"a": "teachers/a", "b": "teachers/b"}', "--model_name_or_path", "x", "--use_peft", "true"]
    flags += ["--lora_target_modules", "q", "v", "--model_init_kwargs", '{"attention_dropout": 0.1}', "--learning_rate", "3e-05"]
    flags += ["--lr_scheduler_type", "cosine", "--history_fields", "chosen", "--overwrite", "true", "--hub_token", "secret"]
    saved = run_config(*parser.parse_args_and_config(flags))
    assert not {"output_dir", "overwrite", "hub_token"} & set(yaml.safe_load(saved))
    (tmp_path / "run.yaml").write_text(saved)
    parser = training_parser((RunArguments,), (ModelConfig,), None, short=False)
    again = parser.parse_args_and_config(["--config", str(tmp_path / "run.yaml"), "--output_dir", "elsewhere"])
    assert run_config(*again) == saved
    assert again[0].distill_anyway is True
    assert again[1].teachers == {"a": "teachers/a", "b": "teachers/b"}


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["run", "--config", "missing.yaml"], "No such file or directory: .missing.yaml"),
        (["score", "--model_name_or_path", "nowhere/x", "--input", "missing.jsonl"], "'missing.jsonl' cannot be read"),
        (["prepare", "--output_dir", "x"], "Give --output_dir and --model_name_or_path"),
        (["reward", "--output_dir", "x", "--use_cpu", "true", "--model_name_or_path", "nowhere/x"], "Give --dataset_name"),
        (
            ["reward", "--output_dir", "x", "--use_cpu", "true", "--model_name_or_path", "nowhere/x", "--dataset_name", "pairs"],
            "No tokenizer can be loaded from nowhere/x: .* Give a Hub id, or a folder",
        ),
        (["run", "--output_dir", "x", "--use_cpu", "true"], "Give --model_name_or_path"),
        (["run", "--output_dir", "x", "--use_cpu", "true", "--alpha", "2"], r"`alpha` must be in \[0, 1\]"),
        (["run", "--output_dir", "x", "--use_cpu", "true", "--model_name_or_path", "nowhere/x"], "nowhere/x"),
    ],
)
def test_errors_are_one_line_and_name_the_fix(argv, match, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_pairs(history=0).select_columns(["prompt", "chosen", "rejected"]).to_json("pairs/train.jsonl")
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"trl-pafo {argv[0]}: ")
    assert re.search(match, error)


@pytest.mark.parametrize(("flags", "unused"), [([], []), (["--train_users", "5"], ["train_users"])])
def test_quickstart_works_on_the_file_that_is_named(monkeypatch, flags, unused):
    taken = []
    monkeypatch.setattr("trl_pafo.cli.run.main", lambda run_args, *_: taken.append(run_args))
    assert main(["quickstart", "--data_path", "survey.csv", *flags]) == 0
    assert taken[0].source == "files"
    assert unused_options(taken[0]) == unused
    assert main(["quickstart"]) == 0
    assert (taken[1].source, taken[1].train_users) == ("styles", 160)


def test_reward_does_not_choose_between_two_datasets(encoder, tmp_path, capsys):
    config = tmp_path / "reward.yaml"
    config.write_text(f"datasets: [{{path: one}}]\ndataset_name: other\nuse_cpu: true\nmodel_name_or_path: {encoder}\n")
    assert main(["reward", "--config", str(config), "--output_dir", str(tmp_path / "out")]) == 1
    assert "`datasets` and --dataset_name other are both given" in capsys.readouterr().err
