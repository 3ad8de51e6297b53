"""What the trainings of a run make, full models or adapters, and what they start from."""

import copy
import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from helpers.parts import make_model, make_pairs, make_teachers
from helpers.rounding import rounding
from helpers.small_runs import small_run, train_nothing
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig
from trl import ModelConfig

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.errors import ConfigError
from trl_pafo.evaluation.rewards import score_rows
from trl_pafo.models.averaging import mean_of_models
from trl_pafo.models.loading import load_reward_model
from trl_pafo.pipeline import starting_points
from trl_pafo.pipeline.prepare import load_prepared
from trl_pafo.pipeline.run import Run
from trl_pafo.pipeline.starting_points import start_of, student_model, teacher_model
from trl_pafo.trainer.loaded_teachers import TeacherModels

LORA = {"lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"]}
MODELS = ("bradley_terry", "personalized_bt", "pafo")
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.fixture
def run(decoder, training, tmp_path, short_report):
    return lambda kind=LORA, model=decoder, **options: small_run(tmp_path / "run", training, model, kind=kind, **options)


@pytest.fixture
def loaded(monkeypatch) -> list[list[str]]:
    """Groups whose teachers were in memory together, on one backbone."""
    groups: list[list[str]] = []
    original = TeacherModels.__init__

    def spy(self, teachers, *args, **kwargs):
        groups.append(sorted(teachers))
        original(self, teachers, *args, **kwargs)

    monkeypatch.setattr(TeacherModels, "__init__", spy)
    return groups


def is_adapter(folder) -> bool:
    return (folder / "adapter_model.safetensors").exists() and not (folder / "model.safetensors").exists()


def test_adapters_of_one_base(run, decoder, loaded, tmp_path):
    results = run(teacher_kind="adapter")()
    folder = tmp_path / "run"
    made = [*(folder / "models" / name for name in MODELS), *(folder / "teachers" / name for name in ("majority", "minority"))]
    for path in made:
        assert is_adapter(path), path
        config = json.loads((path / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["task_type"]) == (decoder, "SEQ_CLS")
        names = set(load_file(path / "adapter_model.safetensors"))
        assert any("score" in name for name in names)
        assert all("lora_" in name or "score" in name for name in names)  # nothing of another adapter, nor of the base
    assert loaded == [["majority", "minority"]]
    assert set(results["verdicts"]) == {"bradley_terry", "pafo", "group_routed"}
    assert not (folder / "base_model").exists()

    saved = load_file(folder / "models/pafo/adapter_model.safetensors")
    head = next(tensor for name, tensor in saved.items() if "score" in name)
    torch.testing.assert_close(load_reward_model(folder / "models/pafo").base_model.model.score.weight, head)
    assert (head - load_reward_model(decoder).score.weight).abs().max() > 1e-3
    chosen, _ = score_rows(folder / "models/personalized_bt", load_prepared(folder / "data")["test"])
    lines = (folder / "results/personalized_bt.jsonl").read_text().splitlines()
    np.testing.assert_allclose(chosen, [json.loads(line)["reward_chosen"] for line in lines], atol=rounding(chosen))

    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    run(kind={**LORA, "use_peft": True})()  # the same by another name: nothing is done again, and nothing refused
    assert json.loads((folder / "manifest.json").read_text())["stages"] == stages


@pytest.mark.parametrize("teacher_kind", ["adapter", "full"])
def test_warm_teachers_go_on_from_the_adapter_of_all_groups(run, teacher_kind, monkeypatch, tmp_path):
    """Where they learn nothing, they are it, to rounding: as an adapter, or merged into the base."""
    original = Run._train

    def learn_nothing(self, *args, start=None, changes=None, **kwargs):
        return original(self, *args, start=start, changes={"learning_rate": 0.0} if start else changes, **kwargs)

    monkeypatch.setattr(Run, "_train", learn_nothing)
    kind = {**LORA, "use_peft": True, "lora_dropout": 0.0}
    methods = ["personalized_bt", "group_routed"]
    made = run(kind=kind, methods=methods, teacher_start="warm", teacher_kind=teacher_kind, max_steps=4)
    made.do_only(["prepare", "personalized_bt@1", "teacher:minority"])
    shared, teacher = tmp_path / "run/models/personalized_bt_x1", tmp_path / "run/teachers/minority"
    assert is_adapter(teacher) is (teacher_kind == "adapter")
    assert (teacher / "model.safetensors").exists() is (teacher_kind == "full")
    ids = torch.tensor([[5, 6, 7, 8], [9, 3, 7, 8]])
    rewards = [load_reward_model(path)(ids).logits for path in (teacher, shared)]
    torch.testing.assert_close(*rewards, atol=rounding(*rewards), rtol=0)
    base = json.loads((shared / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert (rewards[0] - load_reward_model(base)(ids).logits).abs().max() > 1e-2


@pytest.mark.parametrize("use_peft", [True, False])
def test_what_a_warm_start_trains(decoder, use_peft, tmp_path):
    adapter = get_peft_model(AutoModelForSequenceClassification.from_pretrained(decoder), LoraConfig("SEQ_CLS", r=2))
    adapter.save_pretrained(tmp_path)
    model, peft_config = start_of(str(tmp_path), "base", ModelConfig(use_peft=use_peft, dtype=None))
    assert peft_config is None
    assert isinstance(model, PeftModel) is use_peft
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if use_peft:
        assert trained
        assert all("lora_" in name or "modules_to_save" in name for name in trained)
    else:
        assert trained == dict(model.named_parameters()).keys()
        assert not any("lora" in name for name in trained)


@pytest.mark.parametrize(("teacher_kind", "teacher_folds"), [("adapter", 1), ("auto", 2)])
def test_the_student_starts_from_the_mean_of_the_teachers(run, teacher_kind, teacher_folds, monkeypatch, tmp_path):
    """Where it learns nothing, it is that mean."""
    original = Run._train

    def learn_nothing(self, out, title, *args, changes=None, **kwargs):
        changes = {**(changes or {}), "learning_rate": 0.0} if title == "PAFO" else changes
        return original(self, out, title, *args, changes=changes, **kwargs)

    monkeypatch.setattr(Run, "_train", learn_nothing)
    kind = {**LORA, "lora_dropout": 0.0}
    made = run(kind=kind, methods=["pafo"], reference="pafo", teacher_kind=teacher_kind, teacher_folds=teacher_folds)
    made.do_only(["prepare"])
    made.do_only([stage.name for stage in made.plan(prepares=False).stages])
    teachers = sorted({path.parent for path in (tmp_path / "run/teachers").rglob("*model.safetensors")})
    assert len(teachers) == 2 * teacher_folds
    student = tmp_path / "run/models/pafo"
    assert is_adapter(student) is (teacher_kind == "adapter")
    ids = torch.tensor([[5, 6, 7, 8], [9, 3, 7, 8]])
    rewards = [model(ids).logits for model in (load_reward_model(student), mean_of_models(teachers))]
    torch.testing.assert_close(*rewards, atol=rounding(*rewards), rtol=0)
    assert (rewards[0] - load_reward_model(teachers[0])(ids).logits).abs().max() > 1e-3


def test_students_that_start_from_the_base(run, monkeypatch, tmp_path):
    """By option, where full teachers have no mean that an adapter is, and where the teachers are given; and their learning rates."""
    train_nothing(monkeypatch)
    asked: list[tuple[object, float]] = []
    original = Run._train

    def remember(self, out, title, rows, start=None, changes=None, **options):
        if title == "PAFO":
            asked.append((start, changes["learning_rate"]))
        else:
            assert "learning_rate" not in (changes or {})
        return original(self, out, title)

    monkeypatch.setattr(Run, "_train", remember)
    options = {"methods": ["personalized_bt", "pafo"], "overwrite": True, "learning_rate": 1e-3}
    run(**options)()
    [(start, rate)] = asked
    assert (len(start), rate) == (2, 5e-4)
    run(student_start="base", **options)()
    run(kind={**LORA, "use_peft": True}, teacher_kind="full", **options)()
    run(teachers=make_teachers("decoder", tmp_path), **options)()
    run(student_start="base", student_learning_rate=2e-4, **options)()
    assert asked[1:] == [*[(None, 1e-3)] * 3, (None, 2e-4)]


def test_full_teachers_that_start_from_another_shared_model_are_trained_again(run, monkeypatch):
    trained = train_nothing(monkeypatch)
    options = {"methods": ["personalized_bt", "group_routed"], "teacher_start": "warm"}
    run(kind=None, **options)()
    trained.clear()
    run(kind={**LORA, "use_peft": True}, teacher_kind="full", overwrite=True, **options)()
    assert trained == ["personalized BT, x1", "Teacher of majority", "Teacher of minority"]


def test_the_kinds_of_student_and_teacher():
    given = ModelConfig(model_name_or_path="base")
    asked = copy.copy(given)
    kinds = {}
    for use_peft in (False, True):
        asked.use_peft = use_peft
        for kind in ("auto", "adapter", "full"):
            student = student_model(asked, kind)
            kinds[use_peft, kind] = (student.use_peft, teacher_model(student, kind).use_peft)
    assert kinds == {
        (False, "auto"): (False, False),
        (False, "adapter"): (True, True),
        (False, "full"): (False, False),
        (True, "auto"): (True, True),
        (True, "adapter"): (True, True),
        (True, "full"): (True, False),
    }
    assert student_model(asked, "auto").lora_task_type == "SEQ_CLS"
    assert given.lora_task_type == "CAUSAL_LM"  # TRL's default; what was given is not changed


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"load_in_4bit": True}, "auto", r"`load_in_4bit` quantizes the base.*--teacher_kind adapter"),
        ({"load_in_4bit": True, "dtype": "auto"}, "adapter", r"computes in a dtype that --dtype names"),
        ({"load_in_8bit": True, "use_peft": True}, "full", r"`load_in_8bit` quantizes the base"),
        (
            {"use_peft": True, "lora_task_type": "TOKEN_CLS"},
            "auto",
            r"task_type=TOKEN_CLS, so the reward head would not be saved",
        ),
    ],
)
def test_kinds_that_cannot_be(options, kind, match):
    with pytest.raises(ConfigError, match=match):
        student_model(ModelConfig(model_name_or_path="base", **options), kind)


def test_without_the_package_that_quantizes(monkeypatch):
    monkeypatch.setattr(starting_points, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"`load_in_4bit` needs a package that is not installed: pip install bitsandbytes"):
        student_model(ModelConfig(model_name_or_path="base", load_in_4bit=True), "adapter")


@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_a_quantized_base_takes_the_same_path(run, loaded, bits, tmp_path):
    base = make_model("decoder", tmp_path / "base", hidden_size=64, intermediate_size=128)  # kernels want whole blocks
    results = run(model=base, kind={**LORA, bits: True, "dtype": "float32"}, teacher_kind="adapter")()
    folder = tmp_path / "run"
    config = json.loads((folder / "base_model/config.json").read_text())
    assert config["quantization_config"][bits] is True
    assert loaded == [["majority", "minority"]]
    for path in (folder / "models/pafo", folder / "teachers/minority"):
        assert is_adapter(path)
        assert json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder / "base_model")
        model = load_reward_model(path)
        assert type(model.base_model.model.model.layers[0].mlp.up_proj).__name__ in ("Linear4bit", "Linear8bitLt")
        assert type(model.base_model.model.score.modules_to_save["default"]) is torch.nn.Linear
    assert set(results["verdicts"]) == {"bradley_terry", "pafo", "group_routed"}
    assert not list(folder.rglob("plain"))


@needs_bitsandbytes
def test_teachers_stand_on_the_quantized_base_of_the_student(training, tmp_path):
    base = make_model("decoder", tmp_path / "base", hidden_size=64, intermediate_size=128)
    how = BitsAndBytesConfig(load_in_4bit=True)
    teachers = {}
    for seed, group in enumerate(("majority", "minority")):
        torch.manual_seed(seed)
        lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), lora).save_pretrained(tmp_path / group)
        teachers[group] = str(tmp_path / group)
    trainer = PAFORewardTrainer(
        base,
        PAFOConfig(str(tmp_path / "out"), num_history=0, **training),
        train_dataset=make_pairs(history=0),
        teachers=teachers,
        peft_config=LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]),
        quantization_config=how,
    )
    row = trainer.train_dataset[0]
    sides = [torch.tensor([row[side]]) for side in ("chosen_ids", "rejected_ids")]
    quantized, plain = (
        load_reward_model(teachers[row["group"]], quantization_config=how),
        load_reward_model(teachers[row["group"]]),
    )
    with torch.no_grad():
        margins = [float(model(sides[0]).logits - model(sides[1]).logits) for model in (quantized, plain)]
    assert row["teacher_margin"] == pytest.approx(margins[0], abs=1e-3)
    assert abs(margins[1] - margins[0]) > 0.01
    trainer.train()
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_a_model_of_the_run_that_is_full_is_started_from_by_its_folder(tmp_path):
    folder = make_model("decoder", tmp_path / "full")
    assert start_of(folder, "base", ModelConfig()) == (folder, None)
    assert start_of(None, "base", ModelConfig()) == ("base", None)
    assert start_of(None, "base", ModelConfig(use_peft=True, lora_task_type="SEQ_CLS"))[1].task_type == "SEQ_CLS"
