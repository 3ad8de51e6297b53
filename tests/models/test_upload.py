"""Which files of a saved model reach the Hub, and what a user reads when they do not."""

import json
import logging
from pathlib import Path

import pytest
from helpers.parts import make_model
from huggingface_hub import ModelCard

from trl_pafo.cli import main
from trl_pafo.models.card import Card
from trl_pafo.models.upload import HubError, create_repo, files_to_push, upload_model


@pytest.fixture
def model(tmp_path) -> Path:
    """A saved model in a folder that holds more."""
    folder = Path(make_model("decoder", tmp_path / "model"))
    (folder / "README.md").write_text(Card("fair").render())
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "pytorch_model.bin", "margins.npy", "train.parquet"):
        (folder / name).write_bytes(b"private")
    for name in ("checkpoint-2/model.safetensors", "runs/events", "teacher_margins/a.npy"):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(b"private")
    return folder


@pytest.fixture
def adapter(tmp_path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "model.safetensors").write_bytes(b"of an earlier training")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base"), "r": 2}))
    (folder / "README.md").write_text(Card("fair", is_adapter=True).render())
    return folder


TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def test_weights_configuration_tokenizer_and_card_are_pushed_and_nothing_else(model, hub):
    upload_model(model, create_repo("lab/fair"), message="Now")
    repo = hub.repos["lab/fair"]
    assert set(repo.files) == {".gitattributes", "README.md", "config.json", "model.safetensors"} | TOKENIZER
    assert repo.files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert 'model_id = "lab/fair"' in repo.files["README.md"].decode()
    assert 'model_id = "."' in (model / "README.md").read_text()  # the folder is as it was
    assert repo.messages == ["Now"]
    assert b"private" not in repo.files.values()


def test_weights_of_another_kind_go_and_other_files_stay(model, hub):
    upload_model(model, create_repo("lab/fair"))
    old = hub.repos["lab/fair"].files
    extra = {"LICENSE": b"mine", "adapter_model.safetensors": b"old", "adapter_config.json": b"{}", "old/model.safetensors": b"x"}
    hub.repos["lab/fair"].commits.append({**old, **extra})  # by hand
    upload_model(model, "lab/fair", message="again")
    assert set(hub.repos["lab/fair"].files) == {*old, "LICENSE", "old/model.safetensors"}


def test_an_adapter_names_no_folder_of_this_machine(adapter, hub, caplog):
    assert {path.name for path in files_to_push(adapter)} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    create_repo("lab/fair")
    with caplog.at_level(logging.WARNING, "trl_pafo.models.upload"):
        upload_model(adapter, "lab/fair")
    assert "--base_model NAMESPACE/NAME" in caplog.text
    assert json.loads(hub.repos["lab/fair"].files["adapter_config.json"]) == {"base_model_name_or_path": "base", "r": 2}
    upload_model(adapter, "lab/fair", base_model="lab/base")
    files = hub.repos["lab/fair"].files
    assert json.loads(files["adapter_config.json"]) == {"base_model_name_or_path": "lab/base", "r": 2}
    assert ModelCard(files["README.md"].decode()).data.base_model == "lab/base"


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(HubError, match=r"no weights in safetensors.*FULL_STATE_DICT"):
        files_to_push(tmp_path)


def test_a_failing_push_is_one_error_that_says_how_to_push_again(hub, model, capsys):
    hub.errors["create_commit"] = ConnectionError("503 Server Error:\n not today.")
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    assert main(["push", str(model), "--hub_model_id", "lab/fair"]) == 1
    assert capsys.readouterr().err == (
        "trl-pafo push: The model was not pushed to lab/fair: 503 Server Error: not today. The model is saved in "
        f"{model}: `trl-pafo push {model} --hub_model_id lab/fair` pushes it.\n"
    )
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before
    hub.errors.clear()
    assert main(["push", str(model), "--hub_model_id", "lab/fair"]) == 0  # as the message says


def test_a_repository_that_cannot_be_used(hub):
    hub.errors["create_repo"] = PermissionError("403 Forbidden")
    with pytest.raises(HubError, match=r"The Hub repository lab/fair cannot be used: 403 Forbidden\. Check .*`hf auth login`"):
        create_repo("lab/fair", token="hf_wrong")
    assert hub.tokens == ["hf_wrong"]
    assert not hub.repos


@pytest.mark.parametrize("name", ["a/b/c", "lab/un named", "lab/fair"])
def test_what_the_client_refuses_is_such_an_error_too(name):
    """Names that are none, and offline, as the tests are."""
    with pytest.raises(HubError, match=f"{name} cannot be used: .*(Repo id must|offline)"):
        create_repo(name)
