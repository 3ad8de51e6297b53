"""The command line, as a user types it."""

import errno
import json
import os
import re
import subprocess
import sys
from contextlib import suppress

import pytest
import yaml
from helpers.parts import files_of, full_after, make_model, make_pairs, make_teachers, remember_inputs
from trl import ModelConfig

from trl_pafo import __version__
from trl_pafo.cli import COMMANDS, main, parse, reward
from trl_pafo.cli.training import training_parser
from trl_pafo.data.sources.registry import unused_options
from trl_pafo.evaluation.methods import RunArguments
from trl_pafo.pipeline.run_options import run_config

TINY = ["--max_steps", "1", "--per_device_train_batch_size", "4", "--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
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
        (["portfolio", "build", "--beta", "x"], "argument --beta: invalid float value: 'x'"),
        (["score", "--modle_name_or_path", "x"], "--modle_name_or_path is unknown. Did you mean --model_name_or_path?"),
        (["run", "--use_cpu", "true", "--bananas=3"], "--bananas is unknown. `trl-pafo run --help` lists the flags."),
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


@pytest.mark.parametrize(
    ("flags", "trackers"),
    [
        (["--report_to", "wandb", "trackio"], ["wandb", "trackio"]),
        (["--config", "x.yaml"], ["wandb", "trackio"]),
        (["--config", "x.yaml", "--report_to", "wandb"], ["wandb"]),
        (["--config", "x.yaml", "--report_to", "none"], []),
    ],
)
def test_trackers_are_one_or_several(flags, trackers, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("report_to: [wandb, trackio]\n")
    _, args, *_ = parse(reward.make_parser(), ["--output_dir", "out", "--use_cpu", "true", *flags])
    assert args.report_to == trackers


@pytest.mark.parametrize("flag", [["--config", "x.yaml"], ["--config=x.yaml"]])
def test_a_key_of_a_file_that_is_unknown_is_named(flag, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("modle_name_or_path: a\ninput: b\n")
    assert main(["score", *flag]) == 2
    assert capsys.readouterr().err == "trl-pafo score: --modle_name_or_path is unknown. Did you mean --model_name_or_path?\n"


def test_what_works_in_one_process_says_so_under_a_launcher(capsys, monkeypatch, tmp_path):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main(["study", "--output_dir", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("trl-pafo study works in one process. Start it without a launcher")
    monkeypatch.delenv("LOCAL_RANK")  # some clusters set the others for a machine
    main(["study", "--no_such_flag"])
    assert "launcher" not in capsys.readouterr().err


def test_module_is_the_same_command_and_needs_no_reader():
    argv = [sys.executable, "-m", "trl_pafo.cli", "--version"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"trl-pafo {__version__}"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(argv, stdout=write, stderr=subprocess.PIPE, check=True)
    os.close(write)
    assert not done.stderr


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["report", "--help"], ["portfolio"]])
@pytest.mark.parametrize("buffering", [1, -1], ids=["by line", "at the end"])
def test_a_reader_that_wants_no_more_of_a_help_ends_it_quietly(argv, buffering, capsys, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering=buffering) as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        with suppress(SystemExit):
            assert main(argv) == 0
    assert not capsys.readouterr().err


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


def test_a_help_that_cannot_be_written_is_told(capsys, monkeypatch):
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert main(["--help"]) == 1
    assert capsys.readouterr().err == "trl-pafo: [Errno 28] No space left on device\n"


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


def test_run_from_a_yaml_file(encoder, tmp_path, capsys):
    """It goes on after other options were refused, after the disk was full, and in another place."""
    config, folder = tmp_path / "run.yaml", tmp_path / "run"
    config.write_text(
        f"model_name_or_path: {encoder}\noutput_dir: {folder}\nsource: styles\ntrain_users: 10\ntest_users: 10\n"
        "minority_ratio: 0.3\npairs_per_user: 2\ncontext_pairs: 2\nnum_history: 1\nnum_resamples: 50\nmethods: [personalized_bt, pafo]\n"
    )
    argv = ["run", "--config", str(config), *TINY, "--reference_steps", "1", "2", "--teacher_folds", "1"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    lines = ("personalized BT, held out  balanced", "personalized BT, test  balanced", "The reference is personalized")
    for line in (*lines, "PAFO against personalized BT:", f"Picture: {folder}/results/majority_minority.png"):
        assert f"\n{line}" in out
    saved = files_of(folder)
    assert main([*argv, "--alpha", "0.9"]) == 1
    assert "alpha: 0.1 -> 0.9" in capsys.readouterr().err
    assert (folder / "run.yaml").read_bytes() == saved["run.yaml"]
    with full_after(40_000):  # less than a model
        assert main([*argv, "--methods", "personalized_bt", "pafo", "bradley_terry"]) == 1
    assert f"There is no room to write {folder}/" in capsys.readouterr().err
    del saved["run.yaml"]  # the options of the run that was begun last
    assert files_of(folder) | saved == files_of(folder)
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    folder.rename(tmp_path / "again")
    argv = ["run", "--config", str(tmp_path / "again/run.yaml"), "--methods", "personalized_bt", "pafo"]
    assert main([*argv, "--output_dir", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again/manifest.json").read_text())["stages"] == stages
    assert re.findall(r"^\[(.+?)\](.*)$", capsys.readouterr().out, re.M) == [(name, " done before, kept") for name in stages]


def test_reward_on_a_full_disk_leaves_the_model_before(encoder, pairs, tmp_path, capsys):
    pairs.select_columns(["prompt", "chosen", "rejected"]).to_json(tmp_path / "pairs/train.jsonl")
    argv = ["reward", "--model_name_or_path", encoder, "--dataset_name", str(tmp_path / "pairs"), "--eos_token", "[SEP]"]
    argv += ["--output_dir", str(tmp_path / "out"), "--max_length", "256", *TINY]
    assert main(argv) == 0
    before = files_of(tmp_path / "out")
    with full_after(len(before["model.safetensors"]) - 1):
        assert main([*argv, "--learning_rate", "0.1"]) == 1
    assert f"There is no room to write {tmp_path / 'out'}: the disk is full" in capsys.readouterr().err
    assert files_of(tmp_path / "out")["model.safetensors"] == before["model.safetensors"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EACCES, "Permission denied", "out/a"), "[Errno 13] Permission denied: 'out/a'"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "[Errno 32] Broken pipe"),  # of a socket, say
    ],
)
def test_errors_of_the_operating_system_are_one_line(error, said, capsys, monkeypatch):
    def refuse(*given):
        raise error

    monkeypatch.setattr("trl_pafo.evaluation.score_file.score_file", refuse)
    assert main(["score"]) == 1
    assert capsys.readouterr().err == f"trl-pafo score: {said}\n"


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
    assert taken[1].teacher_min_steps == 30
    assert main(["quickstart", "--max_steps", "5"]) == 0
    assert taken[2].teacher_min_steps == 0  # which would have no effect, and be told so


def test_reward_does_not_choose_between_two_datasets(encoder, tmp_path, capsys):
    config = tmp_path / "reward.yaml"
    config.write_text(f"datasets: [{{path: one}}]\ndataset_name: other\nuse_cpu: true\nmodel_name_or_path: {encoder}\n")
    assert main(["reward", "--config", str(config), "--output_dir", str(tmp_path / "out")]) == 1
    assert "`datasets` and --dataset_name other are both given" in capsys.readouterr().err
