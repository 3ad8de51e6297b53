"""A checkpoint that is a pickle with code in it: never run, wherever a model can be named, and one clear error says what to do."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers.parts import make_adapter, make_model, make_pairs
from transformers import AutoModelForSequenceClassification

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.cli import main
from trl_pafo.errors import ConfigError, TrlPafoError
from trl_pafo.models import RewardScorer
from trl_pafo.models.base_models import materialize_model
from trl_pafo.models.loading import load_reward_model
from trl_pafo.models.safe_loading import check_model_folder, local_folder, safe_init_kwargs
from trl_pafo.palm import MixedPolicy
from trl_pafo.trainer.teacher import Teacher

REFUSED = "no weights in safetensors.*pickle.*can run code when it is read"


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    mark = tmp_path / "code-has-run"
    yield mark
    assert not mark.exists(), "the pickle was read, and its code has run"


@pytest.fixture(params=["model", "sharded", "adapter", "base of an adapter"])
def evil(request, tmp_path, mark, decoder):
    """Folders whose weights are a pickle with code."""
    folder = tmp_path / "evil"
    shutil.copytree(decoder, folder)
    if request.param in ("model", "sharded"):
        (folder / "model.safetensors").unlink()
        torch.save(Payload(mark), folder / "pytorch_model.bin")
        if request.param == "sharded":
            (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00001.bin")
            index = {"metadata": {}, "weight_map": {"score.weight": "pytorch_model-00001-of-00001.bin"}}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        return folder
    adapter = tmp_path / "adapter"
    make_adapter(folder, adapter)
    if request.param == "adapter":
        (adapter / "adapter_model.safetensors").unlink()
        torch.save(Payload(mark), adapter / "adapter_model.bin")
    else:
        (folder / "model.safetensors").unlink()
        torch.save(Payload(mark), folder / "pytorch_model.bin")
    return adapter


def test_the_payload_would_run(tmp_path):
    """Otherwise none of this would show anything."""
    torch.save(Payload(tmp_path / "run"), tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / "run").is_dir()


@pytest.mark.parametrize(
    "load",
    [
        check_model_folder,
        load_reward_model,
        lambda folder: local_folder(str(folder)),
        lambda folder: Teacher("a", str(folder)).config,
        lambda folder: Teacher("a", str(folder)).identity(),
        RewardScorer.from_pretrained,
        lambda folder: MixedPolicy([folder], reference=folder),
        lambda folder: safe_init_kwargs(str(folder), None),
    ],
    ids=["check", "load", "local_folder", "teacher", "identity", "reward model", "policy", "training"],
)
def test_no_loader_reads_it(evil, load):
    with pytest.raises(TrlPafoError, match=REFUSED):
        load(evil)


@pytest.mark.parametrize("evil", ["model"], indirect=True)
def test_no_command_reads_it(evil, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "what", "chosen": "yes", "rejected": "no", "group": "a"}\n')
    for command, data in (("score", "--input"), ("evaluate", "--dataset_name")):
        assert main([command, "--model_name_or_path", str(evil), data, str(rows)]) == 1
        error = capsys.readouterr().err
        assert "can run code when it is read" in error
        assert "Traceback" not in error


@pytest.mark.parametrize("evil", ["model"], indirect=True)
def test_a_run_does_not_start_from_it(evil, tmp_path):
    with pytest.raises(ConfigError, match=REFUSED):
        materialize_model(str(evil), tmp_path / "base", 1, seed=0)


@pytest.mark.parametrize("evil", ["model", "adapter"], indirect=True)
@pytest.mark.parametrize("as_teacher", [False, True], ids=["student", "teacher"])
def test_no_training_reads_it(evil, as_teacher, decoder, training, tmp_path):
    student = decoder if as_teacher else str(evil)
    teachers = {"majority": str(evil), "minority": decoder} if as_teacher else None
    with pytest.raises(TrlPafoError, match=REFUSED):
        PAFORewardTrainer(student, PAFOConfig(str(tmp_path / "out"), **training), train_dataset=make_pairs(), teachers=teachers)


def test_safetensors_beside_a_pickle_are_taken(decoder, tmp_path, mark):
    shutil.copytree(decoder, tmp_path / "both")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"):
        torch.save(Payload(mark), tmp_path / "both" / name)
    expected = load_reward_model(decoder).state_dict()
    for name, tensor in load_reward_model(tmp_path / "both").state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_pickles_in_a_training_can_be_asked_for(decoder):
    assert safe_init_kwargs(decoder, {"dtype": "float32"}) == {"use_safetensors": True, "dtype": "float32"}
    assert safe_init_kwargs("anything", {"use_safetensors": False})["use_safetensors"] is False


class TestCheck:
    @pytest.fixture
    def folder(self, decoder, tmp_path):
        shutil.copytree(decoder, tmp_path / "model")
        return tmp_path / "model"

    def change(self, path: Path, **values):
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))

    def test_a_saved_model_passes(self, folder):
        check_model_folder(folder)
        AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(folder, max_shard_size="2KB")
        (folder / "model.safetensors").unlink(missing_ok=True)
        assert len(list(folder.glob("*.safetensors"))) > 1
        check_model_folder(folder)
        assert load_reward_model(folder)
        max(folder.glob("*.safetensors")).unlink()
        with pytest.raises(ConfigError, match=r"No reward model can be loaded from .*model-\d+-of-\d+\.safetensors"):
            load_reward_model(folder)

    @pytest.mark.parametrize("shard", ["pytorch_model.bin", "../../model.safetensors", "/model.safetensors", "a/b.safetensors"])
    def test_an_index_names_safetensors_beside_it(self, folder, shard):
        (folder / "model.safetensors").unlink()
        self.change(folder / "model.safetensors.index.json", metadata={}, weight_map={"score.weight": shard})
        with pytest.raises(ConfigError, match="as a shard; shards are safetensors beside it"):
            load_reward_model(folder)

    def test_broken_weights(self, folder):
        for broken in (b"", b"\xff" * 100):
            (folder / "model.safetensors").write_bytes(broken)
            with pytest.raises(ConfigError, match=r"No reward model can be loaded from .*model"):
                load_reward_model(folder)

    @pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "\x00"])
    def test_a_broken_config(self, folder, text):
        (folder / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=r"config\.json (cannot be read|is not a JSON object).* Save the model again"):
            check_model_folder(folder)

    @pytest.mark.parametrize(
        "change", [{"megatron_config": {"a": 1}}, {"auto_mapping": {"parent_library": "evil.code", "base_model_class": "X"}}]
    )
    def test_an_adapter_that_names_modules_to_import(self, folder, tmp_path, change):
        make_adapter(folder, tmp_path / "adapter")
        check_model_folder(tmp_path / "adapter")
        self.change(tmp_path / "adapter/adapter_config.json", **change)
        with pytest.raises(ConfigError, match="asks for modules of other libraries"):
            load_reward_model(tmp_path / "adapter")


class TestCodeOfAModel:
    """`auto_map` in a configuration names Python files that come with a model."""

    @pytest.fixture
    def with_code(self, tmp_path, mark):
        folder = Path(make_model("encoder", tmp_path / "coded"))
        code = f"import os\nos.mkdir({str(mark)!r})\n"
        for name in ("configuration_x.py", "modeling_x.py", "tokenization_x.py"):
            (folder / name).write_text(code)
        return folder

    def change(self, folder, model_type):
        for name, keys in (
            ("config.json", {"AutoConfig": "configuration_x.C", "AutoModelForSequenceClassification": "modeling_x.M"}),
            ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_x.T", None]}),
        ):
            content = json.loads((folder / name).read_text())
            content["auto_map"] = keys
            if model_type and name == "config.json":
                content["model_type"] = model_type
            (folder / name).write_text(json.dumps(content))

    def test_of_a_known_kind_it_is_loaded_without_its_code(self, with_code, encoder):
        self.change(with_code, None)
        expected = load_reward_model(encoder).config.to_dict()
        assert load_reward_model(with_code).config.to_dict()["hidden_size"] == expected["hidden_size"]

    def test_of_another_kind_it_is_refused(self, with_code, tmp_path, capsys):
        self.change(with_code, "of_its_own")
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"prompt": "what", "response": "yes"}\n')
        assert main(["score", "--model_name_or_path", str(with_code), "--input", str(rows)]) == 1
        assert "trust_remote_code" in capsys.readouterr().err
        with pytest.raises(ConfigError, match="trust_remote_code"):
            load_reward_model(with_code)
        for command in ("prepare", "audit"):
            flags = ["--source", "styles", "--model_name_or_path", str(with_code), "--output_dir", str(tmp_path / command)]
            flags[2] = "--embedding_model" if command == "audit" else flags[2]
            assert main([command, *flags]) == 1
            assert "trust_remote_code" in capsys.readouterr().err
