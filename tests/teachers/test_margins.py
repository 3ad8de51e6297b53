"""Teacher margins: right, computed once, and never reused where something changed."""

import weakref

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from helpers.parts import make_model
from helpers.rounding import rounding
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

import trl_pafo.teachers.loaded
from trl_pafo.errors import TeacherError
from trl_pafo.models.scoring import load_reward_model
from trl_pafo.teachers import margins as module
from trl_pafo.teachers.loaded import TeacherModels
from trl_pafo.teachers.margins import compute_teacher_margins, scale_margins
from trl_pafo.teachers.teacher import QuantizedBase, Teacher, as_teachers, check_teacher


@pytest.fixture
def rows() -> Dataset:
    rng = np.random.default_rng(0)
    ids = lambda: rng.integers(6, 40, rng.integers(3, 12)).tolist()  # noqa: E731
    return Dataset.from_list([{"chosen_ids": ids(), "rejected_ids": ids(), "group": "ab"[i % 3 == 0]} for i in range(17)])


@pytest.fixture
def folders(tmp_path) -> dict[str, str]:
    return {g: make_model("decoder", tmp_path / g, seed=s) for s, g in enumerate("ab", 1)}


@pytest.fixture
def compute(folders, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folders["a"])

    def run(rows, teachers=None, batch_size=4, **options):
        return compute_teacher_margins(
            rows,
            as_teachers(teachers or folders),
            tokenizer,
            Accelerator(cpu=True),
            batch_size=batch_size,
            cache_dir=tmp_path / "cache",
            **options,
        )

    return run


def test_a_row_without_a_teacher_is_refused(compute, rows):
    rows = rows.remove_columns("group").add_column("group", ["a", "b", None, "c"] + ["a"] * 13)
    with pytest.raises(TeacherError, match="2 of 17 margins were computed by no teacher: give each row a group that has one"):
        compute(rows)


@pytest.fixture
def scored(monkeypatch) -> list[str]:
    """Groups of the calls that really scored something."""
    calls: list[str] = []
    original = TeacherModels.score

    def spy(self, group, *args, **kwargs):
        calls.append(group)
        return original(self, group, *args, **kwargs)

    monkeypatch.setattr(TeacherModels, "score", spy)
    return calls


@pytest.fixture
def loaded(monkeypatch) -> list[weakref.ref]:
    """Models that were loaded from disk."""
    models: list[weakref.ref] = []

    def spy(*args, **kwargs):
        model = load_reward_model(*args, **kwargs)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(trl_pafo.teachers.loaded, "load_reward_model", spy)
    return models


def test_margins_equal_plain_forwards_of_the_groups_teacher(rows, folders, compute):
    models = {g: AutoModelForSequenceClassification.from_pretrained(f).eval() for g, f in folders.items()}
    expected = []
    for row in rows:
        with torch.no_grad():
            chosen, rejected = (
                models[row["group"]](torch.tensor([row[k]])).logits.item() for k in ("chosen_ids", "rejected_ids")
            )
        expected.append(chosen - rejected)
    np.testing.assert_allclose(compute(rows), expected, atol=rounding(expected))


def test_reused_when_nothing_changed(rows, compute, scored):
    first = compute(rows)
    assert len(scored) == 2
    np.testing.assert_array_equal(compute(rows), first)
    assert len(scored) == 2


def test_a_moved_teacher_is_the_same_teacher(rows, folders, compute, scored, tmp_path):
    first = compute(rows)
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    moved = compute(rows, {**folders, "a": str(tmp_path / "elsewhere")})
    np.testing.assert_array_equal(moved, first)
    assert len(scored) == 2


def test_one_changed_weight_is_another_teacher(rows, folders, compute, scored):
    compute(rows)
    path = f"{folders['a']}/model.safetensors"
    weights = load_file(path)
    weights["score.weight"][0, 0] += 1.0
    save_file(weights, path, metadata={"format": "pt"})
    compute(rows)
    assert len(scored) == 3  # teacher a alone again


def test_other_tokens_are_scored_again(rows, compute, scored):
    compute(rows)
    longer = rows.map(lambda row: {"chosen_ids": [*row["chosen_ids"], 7]})
    compute(longer)
    assert len(scored) == 4


def test_swapping_chosen_and_rejected_is_not_the_same_data(rows, compute, scored):
    first = compute(rows)
    swapped = rows.rename_columns({"chosen_ids": "r", "rejected_ids": "chosen_ids"}).rename_column("r", "rejected_ids")
    np.testing.assert_allclose(compute(swapped), -first, atol=rounding(first))


def test_models_in_memory_have_an_identity_too(rows, folders, compute, scored):
    models = {g: AutoModelForSequenceClassification.from_pretrained(f) for g, f in folders.items()}
    first = compute(rows, models)
    np.testing.assert_allclose(compute(rows), first, atol=rounding(first))
    compute(rows, models)
    assert len(scored) == 4
    with torch.no_grad():
        models["a"].score.weight += 1.0
    compute(rows, models)
    assert len(scored) == 5


def test_a_sharded_model_has_no_identity(folders):
    """Under ZeRO-3 parameters are empty on a rank; two teachers would look the same."""
    model = AutoModelForSequenceClassification.from_pretrained(folders["a"])
    model.score.weight.data = torch.empty(0)
    assert Teacher("a", model).identity() is None


def test_a_model_that_differs_between_processes_is_refused(rows, folders, compute, monkeypatch):
    """Under FSDP the first process alone may have the weights of a model that a user loads."""
    model = AutoModelForSequenceClassification.from_pretrained(folders["a"])
    monkeypatch.setattr(module, "gather_object", lambda found: [*found, "of another process"])
    with pytest.raises(TeacherError, match="group 'a' has other weights on other processes"):
        compute(rows, {**folders, "a": model})


def test_the_main_process_alone_reads_files_and_cache(rows, folders, compute, tmp_path, monkeypatch):
    """Others may not see its disk, and take what it says."""
    first = compute(rows)
    said = []
    monkeypatch.setattr(module, "broadcast_object_list", lambda found, from_process: said.append(found[0]))
    compute(rows)
    monkeypatch.setattr(type(Accelerator(cpu=True)), "is_main_process", False)
    monkeypatch.setattr(module.np, "load", lambda *args, **kwargs: pytest.fail("read by another process"))
    monkeypatch.setattr(Teacher, "identity", lambda self: pytest.fail("read by another process"))
    answers = iter(said)
    monkeypatch.setattr(module, "broadcast_object_list", lambda found, from_process: found.__setitem__(0, next(answers)))
    np.testing.assert_array_equal(compute(rows), first)


def test_teachers_are_loaded_one_backbone_at_a_time_and_freed(rows, folders, compute, loaded, monkeypatch):
    """No teacher is in memory beside another one, after the last, or where the margins are at hand."""
    alive = []
    score = TeacherModels.score

    def spy(self, *args, **kwargs):
        alive.append(sum(model() is not None for model in loaded))
        return score(self, *args, **kwargs)

    monkeypatch.setattr(TeacherModels, "score", spy)
    compute(rows)
    assert alive == [1, 1]
    assert [model() for model in loaded] == [None, None]
    compute(rows)
    assert len(loaded) == 2


def test_of_adapters_on_one_backbone_only_missing_ones_are_scored(rows, folders, compute, loaded, scored, tmp_path):
    adapters = {}
    for seed, group in enumerate("ab"):
        torch.manual_seed(seed)
        base = AutoModelForSequenceClassification.from_pretrained(folders["a"])
        config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(base, config).save_pretrained(tmp_path / f"adapter-{group}")
        adapters[group] = str(tmp_path / f"adapter-{group}")
    first = compute(rows, adapters)
    assert (len(loaded), scored) == (1, ["a", "b"])
    path = f"{adapters['b']}/adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path)
    second = compute(rows, adapters)
    assert (len(loaded), scored) == (2, ["a", "b", "b"])
    is_a = np.asarray(rows["group"]) == "a"
    np.testing.assert_array_equal(first[is_a], second[is_a])
    assert not np.allclose(first[~is_a], second[~is_a])


def test_adapter_as_teacher(rows, folders, compute, tmp_path):
    base = AutoModelForSequenceClassification.from_pretrained(folders["a"])
    torch.manual_seed(3)
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(folders["a"]).save_pretrained(tmp_path / "adapter")
    got = compute(rows, {**folders, "a": str(tmp_path / "adapter")})
    row_numbers = [i for i, g in enumerate(rows["group"]) if g == "a"]
    model.eval()
    for i in row_numbers[:4]:
        with torch.no_grad():
            chosen, rejected = (model(torch.tensor([rows[i][k]])).logits.item() for k in ("chosen_ids", "rejected_ids"))
        assert got[i] == pytest.approx(chosen - rejected, abs=rounding(chosen, rejected))


def test_the_quantization_of_the_base_is_part_of_the_key(rows, folders, compute, tmp_path, monkeypatch):
    """Margins on the base as it is are not those on the student's quantized one."""
    model = AutoModelForSequenceClassification.from_pretrained(folders["a"])
    get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    teachers = {"a": str(tmp_path / "adapter"), "b": folders["b"]}
    given = []

    def load(folder, dtype, quantization_config=None):
        given.append((folder.name, quantization_config and quantization_config.load_in_4bit))
        return load_reward_model(folder, dtype)

    monkeypatch.setattr(trl_pafo.teachers.loaded, "load_reward_model", load)
    compute(rows, teachers)
    assert given == [("adapter", None), ("b", None)]
    base = QuantizedBase(folders["a"], BitsAndBytesConfig(load_in_4bit=True))
    compute(rows, teachers, quantized=base)
    compute(rows, teachers, quantized=base)
    assert given[2:] == [("adapter", True)]


def test_the_base_of_an_adapter_is_part_of_its_identity(folders, tmp_path):
    base = AutoModelForSequenceClassification.from_pretrained(folders["a"])
    get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    before = Teacher("a", str(tmp_path / "adapter")).identity()
    weights = load_file(f"{folders['a']}/model.safetensors")
    weights["model.norm.weight"][0] += 1.0
    save_file(weights, f"{folders['a']}/model.safetensors", metadata={"format": "pt"})
    assert Teacher("a", str(tmp_path / "adapter")).identity() != before


def test_a_teacher_is_scored_with_its_own_pad_id(rows, folders, compute):
    """A decoder pools at the last token that is not padding: another pad id would move it."""
    model = AutoModelForSequenceClassification.from_pretrained(folders["a"])
    expected = compute(rows)
    model.config.pad_token_id = rows[1]["chosen_ids"][-1]
    model.save_pretrained(folders["a"])
    batched = compute(rows, batch_size=8)
    alone = compute(rows, {"a": model, "b": folders["b"]}, batch_size=1)
    np.testing.assert_allclose(batched, alone, atol=rounding(alone))
    assert not np.allclose(batched, expected, atol=1e-3)


def test_no_half_written_file_is_left(rows, compute, tmp_path, monkeypatch):
    monkeypatch.setattr(module.np, "save", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        compute(rows)
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_broken_teacher_raises(rows, folders, compute):
    path = f"{folders['a']}/model.safetensors"
    weights = load_file(path)
    weights["score.weight"][:] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(TeacherError, match=r"The teacher of group .* rewards are NaN or infinite"):
        compute(rows)


def test_scale_is_the_root_mean_square_of_the_labeled_rows():
    margins = np.array([10.0, -10.0, 1.0, -1.0, 99.0])
    group = np.array(["a", "a", "b", "b", "b"])
    labeled = np.array([True, True, True, True, False])
    scaled = scale_margins(margins, group, labeled)
    pooled = np.sqrt((100 + 100 + 1 + 1) / 4)
    np.testing.assert_allclose(scaled, [pooled, -pooled, pooled, -pooled, 99 * pooled], rtol=1e-6)


def test_scale_of_a_teacher_that_learnt_nothing():
    with pytest.raises(TeacherError, match="'b' has margin 0"):
        scale_margins(np.array([1.0, 0.0]), np.array(["a", "b"]), np.array([True, True]))


def test_check_teacher_accepts_a_fitting_one(folders):
    check_teacher(Teacher("a", folders["a"]), AutoTokenizer.from_pretrained(folders["b"]))
