"""Teacher margins: each row by its own group's teacher, scored once, and never reused where something changed. No model is loaded."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

from trl_pafo.errors import ConfigError, TeacherError
from trl_pafo.teachers import margins as module
from trl_pafo.teachers.margins import TeacherMargins, scale_margins
from trl_pafo.teachers.online import TeacherRows

GROUPS = ["a", "b", "b", "a", "b"]
ROWS = Dataset.from_dict(
    {
        "chosen_ids": [[1, 2], [3], [4, 4, 4], [5], [7]],
        "rejected_ids": [[1], [9, 9], [4], [8], [7, 1]],
        "group": GROUPS,
        "has_label": [True, True, True, True, False],
    }
)
SIGN = {"a": 1.0, "b": -10.0}


def margin(group: str, chosen: list[int], rejected: list[int]) -> float:
    """What the teacher of a group says of a pair."""
    return SIGN[group] * (sum(chosen) - sum(rejected))


EXPECTED = [margin(row["group"], row["chosen_ids"], row["rejected_ids"]) for row in ROWS]


@dataclass(frozen=True)
class FakeTeacher:
    group: str
    weights: str | None = "weights"
    source: object = "folder"
    pad: int = 0
    base: str | None = None

    def identity(self):
        return self.weights and f"{self.weights} of {self.group}"

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

        yield SimpleNamespace(
            margins=margins, forward=lambda group, ids: np.array([SIGN[group] * sum(i) for i in ids], np.float32)
        )
        loaded.pop()

    monkeypatch.setattr(module, "TeacherModels", load)
    return calls


@pytest.fixture
def make(tmp_path, scored):
    def make(teachers=TEACHERS, **options):
        return TeacherMargins(teachers, None, Accelerator(cpu=True), cache_dir=tmp_path / "cache", **options)

    return make


def of(dataset) -> list[float]:
    return dataset["teacher_margin"][:]


def test_each_row_has_the_margin_of_its_groups_teacher(make, scored):
    margins = make()
    rows = margins.attach(ROWS)
    assert of(rows) == EXPECTED
    assert rows.features["teacher_margin"].dtype == "float32"
    assert scored == [["a"], ["b"]]
    assert margins.teachers == {}  # they are let go


def test_teachers_of_one_backbone_are_loaded_together_and_only_missing_ones_scored(make, scored):
    together = {group: FakeTeacher(group, base="one") for group in "ab"}
    make(together).attach(ROWS)
    make({**together, "b": replace(together["b"], weights="others")}).attach(ROWS)
    assert scored == [["a", "b"], ["b"]]


def quantized(teacher):
    return SimpleNamespace(to_dict=lambda: {"bits": 4}) if teacher.group == "a" else None


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({}, ""),
        ({"batch_size": 3, "prefix_sharing": "auto", "clip": 1.0, "scale": "rms"}, ""),
        ({"teachers": {**TEACHERS, "b": FakeTeacher("b", "others")}}, "b"),
        ({"teachers": {**TEACHERS, "b": FakeTeacher("b", pad=3)}}, "b"),
        ({"dtype": torch.bfloat16}, "ab"),
        ({"quantized": SimpleNamespace(config_for=quantized)}, "a"),
    ],
    ids=["nothing", "no input", "weights", "pad id", "dtype", "quantized base"],
)
def test_margins_are_reused_unless_what_decides_them_changes(make, scored, change, again):
    make().attach(ROWS)
    scored.clear()
    make(**change).attach(ROWS)
    assert "".join(group for call in scored for group in call) == again


def test_other_tokens_are_scored_again(make, scored):
    make().attach(ROWS)
    swapped = ROWS.rename_columns({"chosen_ids": "r", "rejected_ids": "chosen_ids"}).rename_column("r", "rejected_ids")
    assert of(make().attach(swapped)) == [-value for value in EXPECTED]
    for chosen in ([[1], [2], [3]], [[1, 2], [], [3]], [[1], [2, 3], []]):  # cut elsewhere
        make().attach(Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": [[5]] * 3, "group": ["a"] * 3}))
    assert len(scored) == 2 + 2 + 3


def test_a_teacher_without_an_identity_is_scored_each_time(make, scored, tmp_path):
    """A sharded model: two of them could look the same."""
    for _ in range(2):
        make({**TEACHERS, "a": FakeTeacher("a", None, source=object())}).attach(ROWS)
    assert scored == [["a"], ["b"], ["a"]]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_row_without_a_teacher_is_refused(make):
    rows = ROWS.remove_columns("group").add_column("group", ["a", "b", None, "c", "a"])
    with pytest.raises(TeacherError, match="2 of 5 margins have no teacher: give each row a group that has one"):
        make().attach(rows)


def test_a_model_that_differs_between_processes_is_refused(make, monkeypatch):
    """Under FSDP the first process alone may have the weights of a model that a user loads."""
    monkeypatch.setattr(module, "gather_object", lambda found: [*found, "of another process"])
    with pytest.raises(TeacherError, match="group 'a' has different weights on different processes"):
        make({**TEACHERS, "a": FakeTeacher("a", source=object())}).attach(ROWS)


def test_the_main_process_alone_reads_files_and_cache(make, monkeypatch):
    """Others may not see its disk, and take what it says."""
    make().attach(ROWS)
    said = []
    monkeypatch.setattr(module, "broadcast_object_list", lambda found, from_process: said.append(found[0]))
    make().attach(ROWS)
    monkeypatch.setattr(type(Accelerator(cpu=True)), "is_main_process", False)
    monkeypatch.setattr(module.np, "load", lambda *args, **kwargs: pytest.fail("read by another process"))
    monkeypatch.setattr(FakeTeacher, "identity", lambda self: pytest.fail("read by another process"))
    answers = iter(said)
    monkeypatch.setattr(module, "broadcast_object_list", lambda found, from_process: found.__setitem__(0, next(answers)))
    assert of(make().attach(ROWS)) == EXPECTED


def test_no_half_written_file_is_left(make, tmp_path, monkeypatch):
    monkeypatch.setattr(module.np, "save", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        make().attach(ROWS)
    assert not list((tmp_path / "cache").iterdir())


# --- given in a column, scaled, clipped


def test_a_column_is_taken_as_it_is(make, scored):
    rows = ROWS.add_column("teacher_margin", [0.5, -2.0, 0.0, 1.0, 9.0])
    assert of(make({}).attach(rows)) == [0.5, -2.0, 0.0, 1.0, 9.0]
    assert of(make({}).attach(rows.remove_columns(["group", "has_label"]))) == [0.5, -2.0, 0.0, 1.0, 9.0]
    assert of(make({}, clip=1.5).attach(rows)) == [0.5, -1.5, 0.0, 1.0, 1.5]
    assert scored == []


def test_margins_are_scaled_and_then_clipped(make):
    scaled = scale_margins(np.array(EXPECTED), np.array(GROUPS), np.array(ROWS["has_label"]))
    np.testing.assert_allclose(of(make(scale="rms", clip=60.0).attach(ROWS)), scaled.clip(-60, 60), rtol=1e-6)
    assert abs(scaled).max() > 60


def test_scale_is_the_root_mean_square_of_the_labeled_rows():
    margins, group = np.array([10.0, -10.0, 1.0, -1.0, 99.0]), np.array(["a", "a", "b", "b", "b"])
    scaled = scale_margins(margins, group, np.array([True, True, True, True, False]))
    pooled = np.sqrt((100 + 100 + 1 + 1) / 4)
    np.testing.assert_allclose(scaled, [pooled, -pooled, pooled, -pooled, 99 * pooled], rtol=1e-6)
    with pytest.raises(TeacherError, match="'b' has margin 0"):
        scale_margins(np.array([1.0, 0.0]), np.array(["a", "b"]), np.array([True, True]))


# --- of a batch


def batch(**values):
    return SimpleNamespace(**{"teacher_margin": None, "teacher_rows": None, "has_label": None, "group_id": None, **values})


def test_margins_of_a_batch_are_those_of_its_column(make):
    margins = make({}, clip=1.0, groups=["b", "a"])
    stream = ROWS.to_iterable_dataset()
    assert margins.attach(stream) is stream
    given = batch(teacher_margin=torch.tensor([3.0, -0.5]), group_id=torch.tensor([0, 1]))
    assert margins.of_batch(given).tolist() == [1.0, -0.5]
    assert margins.new_logs([])["teacher_margin/b"] == 3.0
    with pytest.raises(ConfigError, match="Use DataCollatorForGroupPreference"):
        margins.of_batch(batch())


def test_teachers_of_a_stream_score_each_batch(make, scored):
    margins = make({group: FakeTeacher(group, base="one") for group in "ab"})
    margins.attach(ROWS.to_iterable_dataset())
    assert scored == []
    rows = TeacherRows(GROUPS, ROWS["chosen_ids"][:], ROWS["rejected_ids"][:])
    for _ in range(2):
        assert margins.of_batch(batch(teacher_rows=rows)).tolist() == EXPECTED
    assert len(scored) == 1
    margins.close()
    margins.of_batch(batch(teacher_rows=TeacherRows(["a"], [[1]], [[2]])))
    assert len(scored) == 2
    with pytest.raises(TeacherError, match="rows of the group 'rare', for which there is no teacher"):
        margins.of_batch(batch(teacher_rows=TeacherRows(["rare"], [[1]], [[2]])))
    margins.close()


# --- agreement with the labels


def test_agreement_is_of_labeled_rows_and_logged_once(make):
    margins = make()
    margins.attach(ROWS)
    assert [(found.group, found.num_pairs, found.share, found.margin) for found in margins.agreement] == [
        ("a", 2, 0.5, -0.5),
        ("b", 2, 0.5, 35.0),
    ]
    found = margins.new_logs([])
    assert found["teacher_accuracy/b"] == 0.5
    assert margins.new_logs([{"step": 1}, {**found, "step": 2}]) == {}
    assert margins.new_logs([{**found, "teacher_margin/b": 1.0}]) == found  # a checkpoint of other teachers


def test_agreement_of_a_stream_is_logged_every_time(make):
    margins = make({}, groups=["a"])
    margins.attach(ROWS.to_iterable_dataset())
    assert margins.new_logs([]) == {}
    for total in (1, 2):
        margins.of_batch(batch(teacher_margin=torch.tensor([2.0]), group_id=torch.tensor([0])))
        assert margins.new_logs([{"teacher_accuracy/a": 1.0, "teacher_margin/a": 2.0}])["teacher_accuracy/a"] == 1.0
        assert margins.agreement[0].num_pairs == total
