"""What a teacher is: its identity, its pad id, what it shares, and whether it fits the student. (Margins: test_margins.py)"""

import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers.parts import make_adapter, make_pairs, make_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trl_pafo.data.history import HistoryCutter, remembered, render_history
from trl_pafo.data.template import add_history_template
from trl_pafo.errors import TeacherError
from trl_pafo.trainer.teacher import QuantizedBase, Teacher, as_teachers, check_teacher


@pytest.fixture
def adapter(decoder, tmp_path) -> str:
    return make_adapter(decoder, tmp_path / "adapter")


def test_paths_become_teachers(tmp_path):
    teachers = as_teachers({"a": tmp_path / "folder", 2: "org/name"})
    assert teachers == {"a": Teacher("a", str(tmp_path / "folder")), "2": Teacher("2", "org/name")}
    assert as_teachers(None) == {}


@pytest.mark.parametrize(
    ("teachers", "match"),
    [
        (["a"], "must map each group to a path or Hub id, got list"),
        ({"a": torch.nn.Linear(2, 1)}, "group 'a' must be a path or Hub id, got Linear. Save a model with its tokenizer"),
        ({float("nan"): "folder"}, "has the group nan, which is no name"),
        ({1.0: "folder", "1": "folder"}, "has the group '1', which is the same name as another one, '1'"),
    ],
)
def test_what_is_no_teacher_is_refused(teachers, match):
    with pytest.raises(TeacherError, match=match):
        as_teachers(teachers)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_every_file_that_is_read_belongs_to_the_identity_of_a_folder(decoder, tmp_path, name):
    """A tokenizer too: where a teacher reads texts, in the evaluation of the group-routed teachers."""
    shutil.copytree(decoder, tmp_path / "one")
    before = Teacher("a", str(tmp_path / "one")).identity()
    (tmp_path / "one/README.md").write_text("for people")
    assert Teacher("a", str(tmp_path / "one")).identity() == before
    path = tmp_path / "one" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?" if name == "model.safetensors" else content + b" ")
    assert Teacher("a", str(tmp_path / "one")).identity() != before


def test_a_base_by_another_spelling_is_the_same_backbone(decoder, adapter, tmp_path, monkeypatch):
    other = Path(shutil.copytree(adapter, tmp_path / "other")) / "adapter_config.json"
    monkeypatch.chdir(f"{decoder}/..")
    other.write_text(other.read_text().replace(decoder, Path(decoder).name))
    assert Teacher("a", str(other.parent)).backbone() == Teacher("b", adapter).backbone()


class TestQuantizedBase:
    """What a student's quantized base (QLoRA) means for teachers. (With bitsandbytes itself: tests/pipeline)"""

    HOW = {"load_in_4bit": True}

    def test_adapters_of_the_same_base_alone_are_loaded_as_it_is(self, decoder, adapter, tmp_path):
        found = QuantizedBase(decoder, self.HOW).config_for(Teacher("a", adapter))
        assert found == self.HOW
        assert found is not self.HOW  # loading writes into it
        assert QuantizedBase(f"{decoder}/../{Path(decoder).name}", self.HOW).config_for(Teacher("a", adapter)) == self.HOW
        assert QuantizedBase(str(tmp_path), self.HOW).config_for(Teacher("a", adapter)) is None
        assert QuantizedBase(decoder, self.HOW).config_for(Teacher("a", decoder)) is None

    def test_a_base_that_was_saved_quantized_is_taken_as_it_is(self, decoder, adapter):
        teacher = Teacher("a", adapter)
        teacher.config.quantization_config = self.HOW
        assert QuantizedBase(decoder, self.HOW).config_for(teacher) is None

    def test_of_a_student(self, decoder):
        model = AutoModelForSequenceClassification.from_pretrained(decoder)
        assert QuantizedBase.of(model) is None
        model.hf_quantizer, model.config.quantization_config = object(), self.HOW
        adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))
        assert QuantizedBase.of(adapted) == QuantizedBase(decoder, self.HOW)


class TestReading:
    """A teacher reads pairs as its own training did, whatever the student is shown."""

    @pytest.fixture
    def teacher(self, decoder, tmp_path):
        def make(inputs: str | None, num_history: int | None = 0, base: str = decoder) -> Teacher:
            folder = tmp_path / "teacher"
            shutil.copytree(base, folder, dirs_exist_ok=True)
            if inputs is not None:
                tokenizer = AutoTokenizer.from_pretrained(folder)
                HistoryCutter(tokenizer, num_history, fields=["chosen"]).remember(inputs)
                tokenizer.save_pretrained(folder)
            return Teacher("minority", str(folder))

        return make

    @pytest.fixture
    def student(self):
        tokenizer = make_tokenizer("decoder")
        HistoryCutter(tokenizer, 2).remember()  # which is nobody else's
        return tokenizer

    ROW = make_pairs(history=2)[0]

    def expected(self, messages: bool, past: int = 0) -> list[int]:
        tokenizer = add_history_template(make_tokenizer("decoder"))
        if not messages:
            return tokenizer(self.ROW["prompt"] + self.ROW["chosen"] + tokenizer.eos_token)["input_ids"]
        history = [{"chosen": entry["chosen"]} for entry in self.ROW["history"][:past]]
        turns = [{"role": "user", "content": self.ROW["prompt"]}, {"role": "assistant", "content": self.ROW["chosen"]}]
        return tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, history=history)["input_ids"]

    @pytest.mark.parametrize(
        ("inputs", "num_history", "messages", "past"),
        [
            ("messages", 0, True, 0),
            ("text", 0, False, 0),
            (None, None, False, 0),
            ("messages", 1, True, 1),
            ("messages", None, True, 2),
        ],
    )
    def test_texts_or_messages_with_the_past_pairs_that_it_was_trained_on(
        self, teacher, student, inputs, num_history, messages, past
    ):
        made = teacher(inputs, num_history)
        assert made.reads_history == bool(past)
        assert made.read(Dataset.from_list([self.ROW]), student)["chosen_ids"][0] == self.expected(messages, past)

    def test_rendered_rows_are_read_without_what_was_rendered(self, teacher, student, tmp_path):
        rows = render_history(Dataset.from_list([self.ROW]), HistoryCutter(add_history_template(student), 2, fields=["chosen"]))
        assert teacher("messages").read(rows, student)["chosen_ids"][0] == self.expected(True)
        AutoModelForSequenceClassification.from_pretrained(teacher(None).source).save_pretrained(tmp_path / "without a tokenizer")
        bare = Teacher("a", str(tmp_path / "without a tokenizer"))
        assert bare.read(rows, student)["chosen_ids"][0] == self.expected(True)
        assert remembered(student)["num_history"] == 2

    def test_one_of_another_family_has_a_tokenizer_of_its_own(self, teacher, student, encoder):
        made = teacher("messages", base=encoder)
        check_teacher(made, student)
        found = made.read(Dataset.from_list([self.ROW]), student)["chosen_ids"][0]
        assert found != self.expected(True)
        assert self.ROW["chosen"] in made.tokenizer.decode(found)

    def test_tokens_are_taken_as_they_are(self, teacher, student):
        rows = Dataset.from_dict({"chosen_ids": [[1, 2]], "rejected_ids": [[3]], "group": ["a"]})
        assert teacher("messages").read(rows, student).to_list() == [{"chosen_ids": [1, 2], "rejected_ids": [3]}]

    def test_one_that_needs_a_history_cannot_judge_a_pair_alone(self, teacher, student):
        made = teacher("messages", 2)
        check_teacher(made, student)
        with pytest.raises(TeacherError, match=r"was trained on rows with histories.*num_history=0\), or set conditioning='own'"):
            check_teacher(made, student, alone=True)
