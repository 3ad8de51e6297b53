"""`trl-pafo reward` that was stopped: it resumes, is never overwritten without a word, and is alone in its folder."""

import json
import os
import re
import shutil

import pytest
from helpers.parts import GROUPS, files_of, make_model, make_pairs, make_teachers

from trl_pafo.cli import main
from trl_pafo.storage.files import LOCK, alone


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A dataset, a student, teachers, and `unbroken`: a training of 6 steps with checkpoints after 2, 4 and 6."""
    base = tmp_path_factory.mktemp("reward")
    make_pairs().to_json(base / "pairs/train.jsonl")
    make_model("encoder", base / "student")
    make_teachers("encoder", base)
    assert main(command(base, base / "unbroken")) == 0
    return base


def command(base, out, *more):
    teachers = {group: str(base / group) for group in GROUPS}
    flags = f"--model_name_or_path {base}/student --dataset_name {base}/pairs --output_dir {out} --num_history 1 --max_length 256"
    flags += " --max_steps 6 --save_steps 2 --logging_steps 1 --per_device_train_batch_size 4 --learning_rate 0.01 --use_cpu true"
    flags += " --bf16 false --report_to none --disable_dropout false --gradient_checkpointing false"
    return ["reward", *flags.split(), "--teachers", json.dumps(teachers), *more]


@pytest.fixture
def stopped(base, tmp_path):
    """As if it had been interrupted while it wrote the checkpoint after step 4."""
    out = tmp_path / "out"
    shutil.copytree(base / "unbroken", out)
    shutil.rmtree(out / "checkpoint-6")
    (out / "model.safetensors").unlink()
    (out / "checkpoint-4/trainer_state.json").unlink()  # what is written last
    return out


def losses(folder):
    return [
        log["loss"]
        for log in json.loads((folder / "checkpoint-6/trainer_state.json").read_text())["log_history"]
        if "loss" in log
    ]


def test_it_resumes_after_the_last_complete_checkpoint(base, stopped):
    assert main(command(base, stopped, "--resume_from_checkpoint", "true")) == 0
    assert losses(stopped) == losses(base / "unbroken")
    assert len(set(losses(stopped))) == 6
    assert (stopped / "model.safetensors").read_bytes() == (base / "unbroken/model.safetensors").read_bytes()


def test_started_again_it_says_what_to_do_and_changes_nothing(base, stopped, capsys):
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*")}
    assert main(command(base, stopped)) == 1
    error = capsys.readouterr().err
    assert "stopped after step 2 of 6. Pass --resume_from_checkpoint true to resume it, false to start over" in error
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("*")} == before


def test_begun_anew_it_never_goes_on_with_what_was_there(base, stopped):
    assert main(command(base, stopped, "--resume_from_checkpoint", "false", "--save_strategy", "no")) == 0
    assert (stopped / "model.safetensors").read_bytes() == (base / "unbroken/model.safetensors").read_bytes()


def test_a_finished_training_is_done_again_as_by_trl(base, tmp_path):
    shutil.copytree(base / "unbroken", tmp_path / "out")
    for path in (tmp_path / "out").glob("checkpoint-*"):
        os.utime(path, (0, 0))  # of two that were written within a second, transformers takes the higher number for the newer
    assert main(command(base, tmp_path / "out", "--max_steps", "2", "--save_total_limit", "1")) == 0
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]


def test_two_in_one_folder(base, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with alone(tmp_path / "out", "busy"):
        assert main(command(base, tmp_path / "out")) == 1
    assert "Another training is running in" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]


def test_no_model(base, tmp_path, capsys):
    assert (
        main(["reward", "--dataset_name", str(base / "pairs"), "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]) == 1
    )
    assert "Give --model_name_or_path: a Hub id, a folder, or one of minilm, smollm2." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_read_right_are_refused(base, tmp_path, capsys):
    make_pairs().to_csv(tmp_path / "pairs.csv")
    (tmp_path / "tables").mkdir()
    rows = 4 * "what,yes,no,,majority\nwhat,yes,no,,minority\n"  # pandas takes an index
    (tmp_path / "tables/train.csv").write_text(f"prompt,chosen,rejected,group\n{rows}")
    for name, match in (
        (tmp_path / "pairs.csv", r"pairs\.csv cannot be loaded .*`trl-pafo prepare --data_path FILE` makes one from a file"),
        (tmp_path / "nowhere", "nowhere cannot be loaded"),
        (f"{base / 'pairs'} --dataset_train_split absent", "no split 'absent'; it has train"),
        (tmp_path / "tables", "hold texts and `rejected` do not"),
    ):
        assert main(command(base, tmp_path / "out", "--dataset_name", *str(name).split())) == 1
        assert re.search(match, capsys.readouterr().err)
    assert not list(tmp_path.glob("out/model*"))


@pytest.mark.parametrize("what", ["student", GROUPS[0]])
def test_an_output_that_is_an_input_is_refused(base, tmp_path, capsys, what):
    shutil.copytree(base, tmp_path / "base")
    before = files_of(tmp_path)
    assert main(command(tmp_path / "base", tmp_path / "base" / what)) == 1
    assert "whose files would be overwritten" in capsys.readouterr().err
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_output_that_cannot_be_made(base, tmp_path, capsys, out):
    (tmp_path / "file").write_text("mine")
    assert main(command(base, tmp_path / out)) == 1
    assert "file is a file. Choose another" in capsys.readouterr().err.replace("--output_dir ", "", 1)


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("config.json", None, "holds no config.json"),
        ("model.safetensors", b"", "model.safetensors: .*save it again"),
        ("model.safetensors", "half", "model.safetensors: .*save it again"),
        ("tokenizer.json", b"{", "No tokenizer can be loaded from"),
    ],
)
def test_a_damaged_model_is_named(base, tmp_path, capsys, file, content, match):
    path = shutil.copytree(base / "student", tmp_path / "student") / file
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    assert main(command(base, tmp_path / "out", "--model_name_or_path", str(tmp_path / "student"))) == 1
    assert re.search(match, capsys.readouterr().err)
