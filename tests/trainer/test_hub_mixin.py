"""What a trainer with the mixin pushes, when, and that a training outlives a push that fails."""

import inspect
import json
import logging
import re
from pathlib import Path

import pytest
from datasets import Dataset
from helpers.parts import make_pairs, make_teachers
from huggingface_hub import ModelCard
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, Trainer
from trl import RewardConfig, RewardTrainer

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.errors import ConfigError
from trl_pafo.models.card import Card
from trl_pafo.models.upload import HubError
from trl_pafo.trainer.checkpoints import save_complete
from trl_pafo.trainer.hub_mixin import HubMixin

MODEL_FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


class OtherTrainer(HubMixin, RewardTrainer):
    """A trainer of another method."""

    def model_card(self) -> Card:
        return Card(tags=["mine"])


@pytest.fixture
def train(training, tmp_path, decoder):
    def build(model=decoder, **options) -> OtherTrainer:
        args = RewardConfig(str(tmp_path / "out"), **{**training, "max_steps": 2, "push_to_hub": True, **options})
        return OtherTrainer(model, args, train_dataset=make_pairs(history=0).select_columns(["prompt", "chosen", "rejected"]))

    return build


def test_pushes_while_training_and_at_its_end(hub, train, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "hub_always_push": True}
    trainer = train(hub_model_id="lab/fair", hub_private_repo=True, **options)
    trainer.train()
    trainer.push_to_hub(dataset_name="lab/choices", tags="more")
    repo = hub.repos["lab/fair"]
    assert repo.private
    # A push takes what is there when it runs, which may be the last step already.
    assert list(dict.fromkeys(repo.messages)) == ["Training in progress", "End of training"]
    for files in repo.commits[1:]:
        assert set(files) - {".gitattributes"} == MODEL_FILES
    assert repo.files["model.safetensors"] == (tmp_path / "out/model.safetensors").read_bytes()
    card = ModelCard(repo.files["README.md"].decode())
    assert "# fair" in card.content
    assert 'model_id = "lab/fair"' in card.content
    assert card.data.datasets == ["lab/choices"]
    assert {"mine", "more"} <= set(card.data.tags)


def test_the_training_outlives_a_push_that_fails_and_its_end_raises_with_the_model_saved(
    hub, train, tmp_path, caplog, monkeypatch
):
    trainer = train(hub_model_id="lab/fair", save_strategy="steps", save_steps=1)
    hub.errors["create_commit"] = ConnectionError("500 Server Error")
    monkeypatch.setattr(logging.getLogger("trl_pafo"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2
    assert "A push failed; the training continues" in caplog.text
    (tmp_path / "out/model.safetensors").unlink()
    with pytest.raises(HubError, match=r"500.*`trl-pafo push .*out --hub_model_id lab/fair` pushes it\."):
        trainer.push_to_hub()
    assert {"model.safetensors", "README.md"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert hub.repos["lab/fair"].messages == []


def test_a_checkpoint_without_weights_is_not_pushed_and_nobody_dies(hub, train, tmp_path, caplog):
    trainer = train(hub_model_id="lab/fair", save_strategy="steps", save_steps=1)
    (tmp_path / "empty").mkdir()  # what FSDP leaves with a sharded state
    with caplog.at_level(logging.WARNING):
        trainer._push_from_checkpoint(str(tmp_path / "empty"))
    assert re.search(r"The checkpoint was not pushed; the training continues.*FULL_STATE_DICT", caplog.text)
    assert hub.repos["lab/fair"].messages == []


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"hub_strategy": "checkpoint"}, ConfigError, "optimizer's state.* Use hub_strategy='every"),
        ({"hub_model_id": "lab/fair", "hub_token": "hf_wrong"}, HubError, "lab/fair cannot be used: 401.*hf auth login"),
    ],
)
def test_what_would_fail_after_hours_fails_before_the_training(options, error, match, hub, train):
    hub.errors["create_repo"] = PermissionError("401 Unauthorized")
    with pytest.raises(error, match=match):
        train(**options)
    assert hub.tokens == [token for name, token in options.items() if name == "hub_token"]


def test_pushing_without_push_to_hub_and_in_the_background(hub, train):
    trainer = train(push_to_hub=False)
    future = trainer.push_to_hub(commit_message="Now", blocking=False, private=True)
    assert future.result(60).repo_url.endswith("/ada/out")
    repo = hub.repos["ada/out"]
    assert repo.private
    assert repo.messages == ["Now"]
    assert 'model_id = "ada/out"' in repo.files["README.md"].decode()


def test_a_saved_model_has_its_card_and_nothing_is_pushed_without_being_asked(hub, train, tmp_path):
    trainer = train(push_to_hub=False)
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert 'model_id = "."' in (tmp_path / "elsewhere/README.md").read_text()
    assert not hub.tokens


def test_an_adapter_that_was_trained_before_does_not_hide_a_full_model(hub, train, tmp_path):
    """Loading prefers an adapter, and so does a push."""
    old = ("adapter_config.json", "adapter_model.safetensors")
    for folder in ("out", "elsewhere", "checkpoint", "complete"):
        (tmp_path / folder).mkdir()
        for name in old:
            (tmp_path / folder / name).write_text("{}")
    trainer = train(hub_model_id="lab/fair")
    trainer._save(str(tmp_path / "checkpoint"))
    assert not {*old} & {path.name for path in (tmp_path / "checkpoint").iterdir()}
    trainer._push_from_checkpoint(str(tmp_path / "checkpoint"))
    trainer.push_to_hub()
    assert set(hub.repos["lab/fair"].files) - {".gitattributes"} == MODEL_FILES
    trainer.save_model(str(tmp_path / "elsewhere"))
    save_complete(trainer, tmp_path / "complete")
    for folder in ("out", "elsewhere", "complete"):
        names = {path.name for path in (tmp_path / folder).iterdir()}
        assert "model.safetensors" in names
        assert not {*old} & names, folder


def test_an_adapter_by_transformers_is_kept(hub, train, decoder, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(decoder, num_labels=1)
    model.add_adapter(LoraConfig(target_modules="all-linear"))
    train(model)._save(str(tmp_path / "adapter"))
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in (tmp_path / "adapter").iterdir()}


def test_signatures_of_the_hooks_are_those_of_the_base_class():
    for name in ("init_hf_repo", "push_to_hub", "save_model", "_save", "_push_from_checkpoint", "create_model_card"):
        ours = inspect.signature(getattr(HubMixin, name)).parameters
        base = inspect.signature(getattr(RewardTrainer if name == "create_model_card" else Trainer, name)).parameters
        assert [parameter for parameter in ours if parameter in base or parameter != "private"] == list(base), name


LORA = LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"])


@pytest.fixture
def train_pafo(training, tmp_path, encoder):
    def build(model=encoder, rows=None, peft=None, teachers=None, **options) -> PAFORewardTrainer:
        options = {"output_dir": str(tmp_path / "out"), "max_steps": 2, "push_to_hub": True, **options}
        args = PAFOConfig(**{**training, **options})
        rows = make_pairs(num_users=9, num_minority=3, pairs_per_user=2) if rows is None else rows
        return PAFORewardTrainer(model, args, train_dataset=rows, teachers=teachers, peft_config=peft)

    return build


def test_no_user_teacher_path_or_pickle_reaches_the_hub(hub, train_pafo, tmp_path, decoder):
    teachers = make_teachers("encoder", tmp_path / "teachers")
    trainer = train_pafo(hub_model_id="lab/fair", save_strategy="steps", save_steps=1, teachers=teachers)
    trainer.train()
    trainer.push_to_hub()
    adapter = train_pafo(model=decoder, peft=LORA, hub_model_id="lab/adapter", output_dir=str(tmp_path / "adapter"))
    adapter.model.add_adapter("teacher", LORA)
    adapter.push_to_hub()
    assert set(hub.repos["lab/fair"].files) - {".gitattributes"} == MODEL_FILES
    adapter_files = MODEL_FILES - {"config.json", "model.safetensors"} | {"adapter_config.json", "adapter_model.safetensors"}
    assert set(hub.repos["lab/adapter"].files) - {".gitattributes"} == adapter_files
    found = b"\n".join(content for repo in hub.repos.values() for files in repo.commits for content in files.values())
    for secret in (b"user-0", b"user-8", b"teachers/m", str(tmp_path).encode(), b"PK\x03\x04"):  # the last: a pickle of torch
        assert secret not in found, secret
    for teacher in (tmp_path / "teachers").iterdir():
        assert (teacher / "model.safetensors").read_bytes() not in found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("full", {}),
        ("adapter", {"peft": LORA}),
        ("plain", {"rows": make_pairs(history=0), "eos_token": "[SEP]"}),
    ],
)
def test_snippets_of_pushed_cards_run_as_pasted_and_give_the_rewards_of_the_trainer(
    hub, train_pafo, tmp_path, decoder, monkeypatch, capsys, name, options
):
    """A full model with a history, an adapter, and a model of plain texts."""
    model = {"model": decoder} if "peft" in options else {}
    trainer = train_pafo(hub_model_id=f"lab/{name}", **model, **options)
    trainer.train()
    trainer.push_to_hub()
    monkeypatch.chdir(tmp_path)  # where what was pushed is found by its name, and so is the base of the adapter
    (tmp_path / "lab" / name).mkdir(parents=True)
    for file, content in hub.repos[f"lab/{name}"].files.items():
        (tmp_path / "lab" / name / file).write_bytes(content)
    (tmp_path / Path(decoder).name).symlink_to(decoder)
    given, *ways = re.findall(r"```python\n(.*?)```", (tmp_path / "lab" / name / "README.md").read_text(), re.S)
    assert f'model_id = "lab/{name}"' in given
    capsys.readouterr()
    found = []
    for way in ways:
        shown: dict = {}
        exec(given + way, shown)
        found.append(json.loads(capsys.readouterr().out))
    with_trl_pafo, printed = found
    assert with_trl_pafo == pytest.approx(printed, abs=1e-4)
    row = {"prompt": shown["prompt"], **dict(zip(("chosen", "rejected"), shown["responses"], strict=True))}
    assert ("history" in shown) == (name != "plain")
    row |= {"history": shown["history"]} if name != "plain" else {}
    assert printed[0] != printed[1]
    assert printed == pytest.approx(trainer.predict(Dataset.from_list([row])).predictions[0].tolist(), abs=1e-4)
