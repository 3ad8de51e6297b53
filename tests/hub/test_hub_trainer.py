"""A trainer and the command line against a Hub on this machine: what arrives there, and what a user reads when it does not."""

import inspect
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from datasets import Dataset
from helpers.hub_endpoint import OUTSIDER, READER, WRITER, Hub, hub_in_place
from helpers.parts import make_model, make_pairs
from huggingface_hub import ModelCard, constants
from peft import LoraConfig
from transformers import Trainer

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.cli import main
from trl_pafo.data.history import HistoryCutter
from trl_pafo.errors import ConfigError
from trl_pafo.hub.upload import HubError, check_before_training, push_model, staged
from trl_pafo.trainer.hub_trainer import HubRewardTrainer, count_groups

MODEL_FILES = {".gitattributes", "README.md", "config.json", "model.safetensors"}
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
LORA = {"r": 2, "task_type": "SEQ_CLS", "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    yield from hub_in_place(monkeypatch, tmp_path)


@pytest.fixture
def train(training, tmp_path, encoder):
    def build(model=encoder, rows=None, teachers=True, peft=None, **options) -> PAFORewardTrainer:
        kind = "decoder" if peft else "encoder"
        teachers = {g: make_model(kind, tmp_path / f"teacher-{g}", seed=s) for s, g in enumerate(["majority", "minority"], 1)}
        trainer = PAFORewardTrainer(
            model=model,
            args=PAFOConfig(str(tmp_path / "out"), **{**training, "max_steps": 2, "push_to_hub": True, **options}),
            train_dataset=make_pairs(num_users=9, num_minority=3, pairs_per_user=2) if rows is None else rows,
            eval_dataset=make_pairs(num_users=9, num_minority=3, pairs_per_user=2, seed=1) if rows is None else None,
            teachers=teachers,
            peft_config=peft,
        )
        return trainer

    return build


def everything(server: Hub) -> bytes:
    """All that ever arrived: files of all commits, and objects that no commit names."""
    repos = server.repos.values()
    return b"\n".join([*(c for r in repos for _, _, files in r.commits for c in files.values()), *server.objects.values()])


def test_model_tokenizer_and_card_are_pushed_and_nothing_else(hub, train, tmp_path):
    trainer = train(hub_model_id="lab/fair", save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.evaluate()
    trainer.push_to_hub(dataset_name="lab/choices")
    repo = hub.repos["lab/fair"]
    for _, _, files in repo.commits[1:]:
        assert set(files) == MODEL_FILES | TOKENIZER_FILES
    assert repo.messages[-1] == "End of training"
    assert "Training in progress" in repo.messages  # without the step, which could tell how many pairs a small group has
    out = tmp_path / "out"
    assert repo.files["model.safetensors"] == (out / "model.safetensors").read_bytes()
    assert repo.files["chat_template.jinja"].decode() == trainer.processing_class.chat_template
    # What lies beside the model and stays here.
    assert list((out / "teacher_margins").iterdir())
    assert (out / "training_args.bin").exists()
    assert (out / "checkpoint-2/optimizer.pt").exists()
    assert not list(out.glob(".push-*"))
    found = everything(hub)
    for secret in (b"user-0", b"user-8", b"teacher-m", str(tmp_path).encode(), b"PK\x03\x04"):  # the last: a pickle of torch
        assert secret not in found, secret
    for teacher in tmp_path.glob("teacher-*"):
        assert (teacher / "model.safetensors").read_bytes() not in found
    card = ModelCard(repo.files["README.md"].decode())
    assert card.data.datasets == ["lab/choices"]
    assert {"trl", "reward-trainer", "pafo"} <= set(card.data.tags)
    assert re.search(r"\| majority \| 6 \| 12 \|", card.content)
    assert re.search(r"\| minority \| &lt;5 \| not shown \|", card.content)
    entry = next(e for e in reversed(trainer.state.log_history) if "eval_accuracy" in e)
    values = {r.metric_name: r.metric_value for r in card.data.eval_results}
    # Nothing of a group of three users, nor of all pairs.
    assert values == {"accuracy (group=majority)": pytest.approx(entry["eval_accuracy/majority"], abs=5e-4)}
    assert all(r.task_type == "preference_evaluation" and r.metric_args["interval"] for r in card.data.eval_results)


def test_snippets_of_pushed_cards_run_as_pasted_and_give_the_rewards_of_the_trainer(hub, train, tmp_path, decoder, training):
    """A full model with a history, an adapter on a model of the Hub, and a model of plain texts."""
    push_model(decoder, "lab/base")
    plain = make_pairs(history=0)
    snippets, expected = [], []
    for name, options in {
        "full": {},
        "adapter": {"model": "lab/base", "peft": LoraConfig(**LORA)},
        "plain": {"rows": plain, "alpha": 1.0, "eos_token": "[SEP]"},
    }.items():
        trainer = train(hub_model_id=f"lab/{name}", **options)
        trainer.train()
        trainer.push_to_hub()
        snippet = re.search(r"```python\n(.*?)```", hub.repos[f"lab/{name}"].files["README.md"].decode(), re.S)[1]
        assert f'model_id = "lab/{name}"' in snippet
        shown: dict = {}
        exec("\n".join(line for line in snippet.splitlines() if re.match(r"history|prompt|responses", line)), shown)
        row = {"prompt": shown["prompt"], **dict(zip(("chosen", "rejected"), shown["responses"], strict=True))}
        row |= {"history": shown["history"]} if name != "plain" else {}
        assert ("history" in shown) == (name != "plain")
        expected.append(trainer.predict(Dataset.from_list([row])).predictions[0].tolist())
        snippets.append(snippet)
    assert set(hub.repos["lab/adapter"].files) - TOKENIZER_FILES == {
        *(".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors")
    }
    done = run_python("print('start')\n" + "\n".join(snippets), hub, tmp_path)
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.split("start\n")[1].splitlines()]
    assert [pair[0] != pair[1] for pair in printed] == [True] * 3
    for found, wanted in zip(printed, expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)


def run_python(code: str, hub: Hub, tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    unset = ("HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "HF_TOKEN")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    env |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": WRITER}
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env, cwd=tmp_path)


def test_command_line_pushes_what_it_trained(hub, encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    make_pairs(history=0).to_parquet(tmp_path / "data/train.parquet")
    flags = ["--model_name_or_path", encoder, "--dataset_name", str(tmp_path / "data"), "--output_dir", "out", "--max_steps", "1"]
    flags += ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--eos_token", "[SEP]", "--max_length", "64"]
    flags += ["--push_to_hub", "true", "--hub_model_id", "lab/shut", "--hub_private_repo", "true", "--hub_strategy", "end"]
    assert main(["reward", *flags]) == 0
    repo = hub.repos["lab/shut"]
    assert repo.private
    assert {"model.safetensors", "README.md", "tokenizer.json"} <= set(repo.files)
    assert not {name for name in repo.files if name.endswith((".bin", ".pt", ".npy"))}
    assert b"user-" not in everything(hub)
    assert str(tmp_path).encode() not in everything(hub)
    # A folder that is there already goes by a command of its own; an error of the Hub is one line.
    assert main(["push", "out", "--hub_model_id", "lab/open", "--commit_message", "By hand"]) == 0
    assert capsys.readouterr().out.endswith(f"Pushed: {hub.url}/lab/open\n")
    assert hub.repos["lab/open"].messages[-1] == "By hand"
    assert not hub.repos["lab/open"].private
    assert 'model_id = "lab/open"' in hub.repos["lab/open"].files["README.md"].decode()
    hub.fail("POST .*/commit/", 403)
    assert main(["push", "out", "--hub_model_id", "lab/other", "--private"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("trl-pafo push: The model was not pushed (lab/other): the token may not write to it.")
    assert hub.repos["lab/other"].private
    assert main(["push", "out"]) == 1
    assert main(["push", "nowhere", "--hub_model_id", "lab/x"]) == 1
    assert main(["push", "out", "--hub_model_id", "lab/x", "--method", "pafo"]) == 1
    assert re.search(r"Give --hub_model_id.*\n.*nowhere is no folder.*\n.*Leave out --method", capsys.readouterr().err)


def test_only_the_adapter_of_the_student_is_pushed(hub, train, decoder, caplog):
    trainer = train(model=decoder, peft=LoraConfig(**LORA), hub_model_id="fair")
    trainer.model.add_adapter("teacher", LoraConfig(**LORA))
    with caplog.at_level(logging.WARNING, "trl_pafo.hub.upload"):
        trainer.push_to_hub()
    files = hub.repos["ada/fair"].files
    assert not [name for name in files if "/" in name]
    assert "which nobody else has" in caplog.text
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == Path(decoder).name  # no path of this machine
    assert "a folder on the machine of the training" in files["README.md"].decode()
    # With its base named, the card is as if it had been there from the start.
    push_model(trainer.args.output_dir, "lab/fair", base_model="lab/base")
    files = hub.repos["lab/fair"].files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "lab/base"
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == "lab/base"
    assert "trained from [lab/base](https://huggingface.co/lab/base)" in card.content
    assert "folder on the machine" not in card.content


@pytest.mark.parametrize(
    ("options", "environment", "error", "match"),
    [
        (
            {"hub_strategy": "checkpoint"},
            {},
            ConfigError,
            "optimizer's state, which trl-pafo never does. Use hub_strategy='every_save'",
        ),
        ({"hub_strategy": "all_checkpoints"}, {}, ConfigError, "optimizer's state"),
        ({"hub_model_id": "a/b/c"}, {}, ConfigError, "hub_model_id='a/b/c' cannot be the name"),
        ({"hub_model_id": "lab/un named"}, {}, ConfigError, "Give hub_model_id as NAME or NAMESPACE/NAME"),
        ({"hub_model_id": "lab/fair"}, {"HF_TOKEN": ""}, ConfigError, "no token for the Hub.*hf auth login"),
        (
            {"hub_model_id": "lab/fair"},
            {"HF_TOKEN": "hf_wrong"},
            HubError,
            "Nothing was trained.*does not accept the token.*hf auth login",
        ),
        ({"hub_model_id": "lab/fair"}, {"HF_TOKEN": READER}, ConfigError, "may only read"),
        (
            {"hub_model_id": "lab/fair"},
            {"HF_TOKEN": OUTSIDER},
            ConfigError,
            "belongs to somebody else.*eve.*Correct hub_model_id",
        ),
    ],
)
def test_what_would_fail_after_hours_fails_before_a_model_is_loaded(
    options, environment, error, match, hub, train, tmp_path, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def no_model(*args, **kwargs):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("trl_pafo.trainer.evaluation.RewardTrainer.__init__", no_model)
    with pytest.raises(error, match=match):
        train(**options)
    assert not hub.repos


def test_a_folder_whose_name_cannot_be_a_model_and_offline_are_refused(hub, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="name of the output folder, 'my run'"):
        check_before_training(None, tmp_path / "my run")
    check_before_training(None, tmp_path / "my_run")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        check_before_training("lab/fair", tmp_path)


@pytest.mark.parametrize(
    ("pattern", "status", "match"),
    [
        ("POST .*/commit/", 403, "the token may not write to it"),
        ("POST .*/commit/", 503, "trouble of its own .status 503.. Push again later"),
        ("PUT /lfs/", 500, "status 500"),
        ("POST .*/preupload/", 401, "does not accept the token|may not see it"),
        ("POST .*/commit/", 429, "too many requests"),
        ("POST .*/commit/", 400, "made to fail. Correct it"),
    ],
)
def test_a_failing_push_is_one_error_that_names_the_fix_and_loses_nothing(pattern, status, match, hub, encoder, tmp_path):
    folder = Path(make_model("encoder", tmp_path / "model"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.fail(pattern, status)
    with pytest.raises(HubError, match=match) as caught:
        push_model(folder, "lab/fair")
    text = str(caught.value)
    assert text.count("\n") == 0
    assert f"Nothing is lost: it is in {folder}, and `trl-pafo push {folder} --hub_model_id lab/fair` pushes it." in text
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    hub.failures.clear()
    push_model(folder, "lab/fair")  # as the message says
    assert hub.repos["lab/fair"].files["model.safetensors"] == before["model.safetensors"]


def test_a_hub_that_is_down_is_named(hub, tmp_path, monkeypatch):
    folder = make_model("encoder", tmp_path / "model")
    hub.__exit__()
    with pytest.raises(HubError, match=f"{hub.url} cannot be reached.*Check the network and HF_ENDPOINT"):
        push_model(folder, "lab/fair")


def test_the_training_outlives_a_push_that_fails_and_its_end_raises_with_the_model_saved(
    hub, train, tmp_path, caplog, monkeypatch
):
    trainer = train(hub_model_id="lab/fair", save_strategy="steps", save_steps=1)
    hub.fail("POST .*/commit/", 500)
    monkeypatch.setattr(logging.getLogger("trl_pafo"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2
    assert "A push failed while training, and the training goes on" in caplog.text
    with pytest.raises(HubError, match="status 500"):
        trainer.push_to_hub()
    assert (tmp_path / "out/model.safetensors").exists()
    assert (tmp_path / "out/README.md").exists()
    assert hub.repos["lab/fair"].messages == ["initial commit"]
    assert not list((tmp_path / "out").rglob(".push-*"))


def test_a_checkpoint_without_weights_is_not_pushed_and_nobody_dies(hub, train, tmp_path, caplog):
    trainer = train(hub_model_id="lab/fair", save_strategy="steps", save_steps=1)
    trainer.create_model_card()
    (tmp_path / "empty").mkdir()  # what FSDP leaves with a sharded state
    with caplog.at_level(logging.WARNING):
        trainer._push_from_checkpoint(str(tmp_path / "empty"))
    assert "The checkpoint was not pushed, and the training goes on" in caplog.text
    assert "FULL_STATE_DICT" in caplog.text
    assert hub.repos["lab/fair"].messages == ["initial commit"]


def test_a_checkpoint_that_is_deleted_while_it_is_pushed_arrives_whole(hub, train, tmp_path):
    trainer = train(hub_model_id="lab/fair", save_strategy="steps", save_steps=1, save_total_limit=1, hub_always_push=True)
    gone: list[bool] = []

    def wait_until_deleted(request: str) -> None:
        if "preupload" in request and not gone:
            deadline = time.monotonic() + 20
            while (tmp_path / "out/checkpoint-1").exists() and time.monotonic() < deadline:
                pause.wait(0.02)
            gone.append(not (tmp_path / "out/checkpoint-1").exists())

    pause = threading.Event()
    hub.before = wait_until_deleted
    trainer.train()
    trainer._finish_current_push()
    repo = hub.repos["lab/fair"]
    assert gone == [True]
    assert repo.messages.count("Training in progress") == 2
    weights = [files["model.safetensors"] for _, message, files in repo.commits if "progress" in message]
    assert weights[0] != weights[1]
    assert weights[1] == (tmp_path / "out/checkpoint-2/model.safetensors").read_bytes()


def test_pushing_without_push_to_hub_and_in_the_background(hub, train, tmp_path):
    trainer = train(push_to_hub=False)
    future = trainer.push_to_hub(commit_message="Now", blocking=False, private=True)
    assert future.result(60).repo_url.repo_id == "ada/out"
    repo = hub.repos["ada/out"]
    assert repo.private
    assert repo.messages == ["initial commit", "Now"]
    assert 'model_id = "ada/out"' in repo.files["README.md"].decode()
    assert "Not evaluated" in repo.files["README.md"].decode()


def test_a_saved_model_has_its_card_and_checkpoints_push_nothing_without_being_asked(hub, train, tmp_path):
    trainer = train(push_to_hub=False)
    trainer.save_model(str(tmp_path / "elsewhere"))
    text = (tmp_path / "elsewhere/README.md").read_text()
    assert 'model_id = "."' in text
    assert not hub.requests or not [r for r in hub.requests if r.startswith(("POST", "PUT"))]


def test_weights_of_another_shape_go_and_other_files_stay(hub, encoder, tmp_path):
    folder = Path(make_model("encoder", tmp_path / "model"))
    push_model(folder, "lab/fair")
    old = hub.repos["lab/fair"].files
    extra = {"LICENSE": b"mine", "adapter_model.safetensors": b"old", "adapter_config.json": b"{}", "old/model.safetensors": b"x"}
    hub.commit("lab/fair", {**old, **extra}, "by hand")
    push_model(folder, "lab/fair", message="again")
    assert set(hub.repos["lab/fair"].files) == {*old, "LICENSE", "old/model.safetensors"}


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(HubError, match=r"no weights in safetensors.*FULL_STATE_DICT"), staged(tmp_path, "a/b"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]


def test_counts_of_groups_leave_out_counterfactual_rows_and_rows_without_a_group():
    rows = Dataset.from_dict(
        {
            "group": ["a", "a", "a", "b", None],
            "user": ["1", "1", "2", "3", "4"],
            "has_label": [True, True, True, False, True],
        }
    )
    assert [(c.name, c.users, c.pairs) for c in count_groups(rows)] == [("a", 2, 3)]
    assert count_groups(rows.remove_columns("user"))[0].users is None
    assert count_groups(None) == []


def test_signatures_of_the_hooks_are_those_of_the_base_class():
    for name in ("init_hf_repo", "push_to_hub", "save_model", "evaluate", "_push_from_checkpoint", "create_model_card"):
        ours, base = (inspect.signature(getattr(cls, name)).parameters for cls in (HubRewardTrainer, Trainer))
        if name == "create_model_card":  # TRL's takes three of transformers'
            assert list(ours) == ["self", "model_name", "dataset_name", "tags"]
        else:  # transformers 5.18 knows no `private` yet
            assert [parameter for parameter in ours if parameter in base or parameter != "private"] == list(base), name


def test_history_settings_are_on_the_card(hub, train):
    trainer = train(num_history=1, history_max_tokens=40, history_fields=["prompt", "chosen"])
    assert HistoryCutter.of(trainer.processing_class).num_history == 1
    trainer.create_model_card()
    text = (Path(trainer.args.output_dir) / "README.md").read_text()
    assert "at most 1 past pair in at most 40 tokens, and of each the fields prompt, chosen." in text
    assert '"rejected"' not in text.split("```python")[1].split("```")[0]
