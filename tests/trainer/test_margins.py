"""Margins of teachers: scored once, and never reused where something changed. No model is loaded."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

from trl_pafo.trainer import margins as module
from trl_pafo.trainer.margins import TeacherMargins

GROUPS = ["a", "b", "b", "a", "b"]
ROWS = Dataset.from_dict(
    {
        "chosen_ids": [[1, 2], [3], [4, 4, 4], [5], [7]],
        "rejected_ids": [[1], [9, 9], [4], [8], [7, 1]],
        "group": GROUPS,
    }
)
SIGN = {"a": 1.0, "b": -10.0}


def margin(group: str, chosen: list[int], rejected: list[int]) -> float:
    """What the teacher of a group says of a pair."""
    return SIGN[group] * (sum(chosen) - sum(rejected))


@dataclass(frozen=True)
class FakeTeacher:
    group: str
    weights: str = "weights"
    pad: int = 0
    base: str | None = None

    def identity(self):
        return f"{self.weights} of {self.group}"

    def pad_id(self, tokenizer):
        return self.pad

    def backbone(self):
        return self.base or self.group


TEACHERS = {group: FakeTeacher(group) for group in "ab"}


@pytest.fixture
def scored(monkeypatch) -> list[list[str]]:
    """Groups that were really scored, one list for each time that teachers were loaded; never two at once."""
    calls: list[list[str]] = []
    loaded = []

    @contextmanager
    def load(teachers, **options):
        assert not loaded
        loaded.append(teachers)
        calls.append([])

        def margins(group, chosen, rejected, batch_size, **more):
            calls[-1].append(group)
            return np.array([margin(group, *pair) for pair in zip(chosen, rejected, strict=True)], np.float32)

        yield SimpleNamespace(margins=margins)
        loaded.pop()

    monkeypatch.setattr(module, "TeacherModels", load)
    return calls


@pytest.fixture
def make(tmp_path, scored):
    def make(**options):
        return TeacherMargins(None, Accelerator(cpu=True), cache_dir=tmp_path / "cache", **options)

    return make


def score(margins, teachers=TEACHERS, rows=ROWS) -> dict[str, list[float]]:
    group = np.asarray(rows["group"])
    found = margins(teachers, {name: rows.select(np.flatnonzero(group == name)) for name in teachers})
    return {name: values.tolist() for name, values in found.items()}


EXPECTED = {name: [margin(name, r["chosen_ids"], r["rejected_ids"]) for r in ROWS if r["group"] == name] for name in "ab"}


def test_each_teacher_scores_its_pairs(make, scored):
    assert score(make()) == EXPECTED
    assert scored == [["a"], ["b"]]


def test_teachers_of_one_backbone_are_loaded_together_and_only_missing_ones_scored(make, scored):
    together = {group: FakeTeacher(group, base="one") for group in "ab"}
    score(make(), together)
    score(make(), {**together, "b": replace(together["b"], weights="others")})
    assert scored == [["a", "b"], ["b"]]


def quantized(teacher):
    return SimpleNamespace(to_dict=lambda: {"bits": 4}) if teacher.group == "a" else None


@pytest.mark.parametrize(
    ("change", "teachers", "again"),
    [
        ({}, {}, ""),
        ({"batch_size": 3, "prefix_sharing": "auto"}, {}, ""),
        ({}, {"b": FakeTeacher("b", "others")}, "b"),
        ({}, {"b": FakeTeacher("b", pad=3)}, "b"),
        ({"dtype": torch.bfloat16}, {}, "ab"),
        ({"quantized": SimpleNamespace(config_for=quantized)}, {}, "a"),
    ],
    ids=["nothing", "no input", "weights", "pad id", "dtype", "quantized base"],
)
def test_margins_are_reused_unless_what_decides_them_changes(make, scored, change, teachers, again):
    score(make())
    scored.clear()
    score(make(**change), {**TEACHERS, **teachers})
    assert "".join(group for call in scored for group in call) == again


def test_products_of_less_precision_are_scored_again(make, scored):
    """TF32 on a GPU; torch keeps the option on any machine."""
    score(make())
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    try:
        for precision, calls in [("ieee", []), ("tf32", [["a"], ["b"]]), ("tf32", [])]:
            scored.clear()
            products.fp32_precision = precision
            score(make())
            assert scored == calls
    finally:
        products.fp32_precision = before


def test_other_tokens_are_scored_again(make, scored):
    score(make())
    swapped = ROWS.rename_columns({"chosen_ids": "r", "rejected_ids": "chosen_ids"}).rename_column("r", "rejected_ids")
    assert score(make(), rows=swapped) == {name: [-value for value in values] for name, values in EXPECTED.items()}
    for chosen in ([[1], [2], [3]], [[1, 2], [], [3]], [[1], [2, 3], []]):  # cut elsewhere
        rows = Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": [[5]] * 3, "group": ["a"] * 3})
        score(make(), {"a": TEACHERS["a"]}, rows)
    assert len(scored) == 2 + 2 + 3


def test_the_main_process_alone_reads_files_and_cache(make, monkeypatch):
    """Others may not see its disk, and take what it says."""
    score(make())
    said = []
    monkeypatch.setattr(module, "broadcast_object_list", lambda found, from_process: said.append(found[0]))
    score(make())
    monkeypatch.setattr(type(Accelerator(cpu=True)), "is_main_process", False)
    monkeypatch.setattr(module.np, "load", lambda *args, **kwargs: pytest.fail("read by another process"))
    monkeypatch.setattr(FakeTeacher, "identity", lambda self: pytest.fail("read by another process"))
    answers = iter(said)
    monkeypatch.setattr(module, "broadcast_object_list", lambda found, from_process: found.__setitem__(0, next(answers)))
    assert score(make()) == EXPECTED


@pytest.mark.parametrize("size", [0, 20, -1])
def test_a_damaged_file_is_written_anew(make, scored, tmp_path, caplog, size):
    score(make())
    damaged, _ = sorted((tmp_path / "cache").iterdir())
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:size])
    assert score(make()) == EXPECTED
    assert len(scored) == 3
    assert f"{damaged} is damaged" in caplog.text
    assert damaged.read_bytes() == whole
