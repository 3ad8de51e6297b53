"""Group -> teacher: a checkpoint or an adapter. What a teacher is, and whether it fits the student."""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_pafo.data.history import forget, reads_history
from trl_pafo.data.labels import as_label
from trl_pafo.data.rendering import InputRenderer
from trl_pafo.data.tokenization import ID_COLUMNS, tokenize_all
from trl_pafo.errors import ConfigError, TeacherError
from trl_pafo.models.loading import pad_id_of, trained_pad_id
from trl_pafo.models.safe_loading import (
    adapter_config,
    has_tokenizer,
    identity_of_folder,
    load_config,
    load_saved_tokenizer,
    local_folder,
)
from trl_pafo.models.weights import check_reward_model

TeacherSpec = str | Path


@dataclass(frozen=True)
class Teacher:
    """
    A group's teacher: the folder or Hub id of a checkpoint or adapter that was trained on the group's preferences.

    What is read of its folder (never weights) is read once.
    """

    group: str
    source: str

    @cached_property
    def folder(self) -> Path:
        """Where the teacher is on disk."""
        return local_folder(self.source)

    @cached_property
    def adapter(self) -> dict[str, Any] | None:
        """The configuration of an adapter; `None` for a checkpoint."""
        return adapter_config(self.folder)

    @cached_property
    def config(self) -> Any:
        """The configuration of the model, without its weights."""
        return load_config(self.folder)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer that was saved with the teacher, if one was."""
        return load_saved_tokenizer(self.folder) if has_tokenizer(self.folder) else None

    @cached_property
    def reads_history(self) -> bool:
        """Whether it was trained on rows with histories, as its tokenizer remembers; one that was trained elsewhere was not."""
        return self.tokenizer is not None and reads_history(self.tokenizer)

    def read(self, pairs: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Pairs as rows of token ids, `chosen_ids` and `rejected_ids`, as the teacher's own training read them.

        One that was trained elsewhere is shown no history, and one without a tokenizer of its own gets the student's. Pairs that
        are tokenized already are taken as they are. Pairs that it cannot read raise [`DataError`].
        """
        own = copy.deepcopy(tokenizer) if self.tokenizer is None else self.tokenizer
        what = f"The training dataset for the teacher of group {self.group!r}"
        if ID_COLUMNS[0] not in pairs.column_names:
            if self.tokenizer is None:
                forget(own)
            rendered = InputRenderer(own, None if self.reads_history else 0).render(pairs, what)
            pairs = tokenize_all(rendered, own, what)
        return pairs.select_columns(list(ID_COLUMNS))

    def pad_id(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """The pad id that the teacher was trained with; that of the student's `tokenizer` where nothing says.

        See [`~trl_pafo.models.loading.trained_pad_id`].
        """
        own = trained_pad_id(self.config, self.tokenizer, self.adapter is not None)
        return pad_id_of(self.config, tokenizer) if own is None else own

    def identity(self) -> str:
        """Digest of all that decides the teacher's answers."""
        return identity_of_folder(self.folder)

    def backbone(self) -> Any:
        """Equal for teachers that can share weights in memory: LoRA adapters of one base, and the same checkpoint."""
        adapter = self.adapter
        # peft cannot switch between other kinds of adapters, nor between those with biases of their own.
        if adapter is None or adapter["peft_type"] != "LORA" or adapter.get("bias", "none") != "none":
            return str(self.folder)
        base = adapter["base_model_name_or_path"]
        # Nor between one that keeps the head of the base and those that have their own.
        kind = (adapter.get("task_type"), tuple(sorted(adapter.get("modules_to_save") or ())))
        return (str(Path(base).resolve()) if Path(base).is_dir() else base, adapter.get("revision"), kind)


@dataclass(frozen=True)
class QuantizedBase:
    """
    The base of a student that is an adapter, quantized when it was loaded (QLoRA): its folder or Hub id, and how it is quantized.

    Teachers on the same base are loaded so too.
    """

    name: str
    config: Any

    @classmethod
    def of(cls, model: Any) -> "QuantizedBase | None":
        """That of a student in memory; `None` where its base is not quantized."""
        if getattr(model, "hf_quantizer", None) is None:
            return None
        return cls(model.config._name_or_path, model.config.quantization_config)

    def config_for(self, teacher: Teacher) -> Any:
        """How the base of a teacher is to be quantized; `None` if it is another, or comes quantized from the disk."""
        if teacher.adapter is None or getattr(teacher.config, "quantization_config", None) is not None:
            return None
        base, own = (os.path.realpath(name) for name in (teacher.adapter["base_model_name_or_path"], self.name))
        return copy.deepcopy(self.config) if base == own else None


def as_teachers(teachers: Mapping[str, TeacherSpec] | None) -> dict[str, Teacher]:
    """Check the types of a `teachers` argument and name its groups; nothing is loaded.

    Raises:
        TeacherError: If it is no mapping, or a value is no path.
    """
    if teachers is None:
        return {}
    if not isinstance(teachers, Mapping):
        raise TeacherError(
            f"`teachers` must map each group to a path or Hub id, got {type(teachers).__name__}; for example "
            '{"majority": "teachers/majority", "minority": "teachers/minority"}.'
        )
    result = {}
    for group, source in teachers.items():
        if not isinstance(source, str | Path):
            raise TeacherError(
                f"The teacher of group {group!r} must be a path or Hub id, got {type(source).__name__}. Save a model with its tokenizer "
                "(save_pretrained), and give the folder."
            )
        name = as_label(group)
        if name is None or name in result:
            problem = "no name" if name is None else f"the same name as another one, {name!r}"
            raise TeacherError(f"`teachers` has the group {group!r}, which is {problem}. Give one teacher to each group.")
        result[name] = Teacher(name, str(source))
    return result


def check_gives_rewards(teacher: Teacher) -> None:
    """Raise [`TeacherError`] where a teacher is not found, or is no reward model; its weights are not loaded."""
    try:
        teacher.config  # noqa: B018  # is read
        check_reward_model(teacher.folder)
    except ConfigError as error:
        raise TeacherError(f"The teacher of group {teacher.group!r} gives no rewards. {error}") from error
    except (OSError, ValueError, KeyError) as error:
        raise TeacherError(f"The teacher of group {teacher.group!r} cannot be read at {teacher.source!r}: {error}") from error


def check_teacher(
    teacher: Teacher, tokenizer: PreTrainedTokenizerBase, *, shares_tokens: bool = False, alone: bool = False
) -> None:
    """Raise where a teacher cannot score the training pairs; its weights are not loaded.

    With `shares_tokens`, the pairs come tokenized, so that a teacher with a tokenizer of its own cannot read their texts. With
    `alone`, it is to score pairs whatever history they are shown under.

    Raises:
        TeacherError: If the teacher is not found, has other than one label, has another tokenizer and no texts to read, or cannot
            score pairs without a history.
    """
    check_gives_rewards(teacher)
    own = teacher.tokenizer
    size = teacher.config.get_text_config().vocab_size if own is None else len(own)
    differs = own is not None and shares_tokens and own.get_vocab() != tokenizer.get_vocab()
    if (own is None and size < len(tokenizer)) or differs:
        raise TeacherError(
            f"The teacher of group {teacher.group!r} has another tokenizer than the student ({size} tokens, the student "
            f"{len(tokenizer)}, or other tokens), so it cannot score the student's token ids. Give pairs that are not tokenized and a "
            "teacher that is saved with its tokenizer, or add the margins as a `teacher_margins` column."
        )
    if alone and teacher.reads_history:
        raise TeacherError(
            f"The teacher of group {teacher.group!r} ({teacher.source}) was trained on rows with histories, so it has no margin of a pair "
            "alone, which is what a pair is to learn under the histories of others. Train it without histories (num_history=0), or set "
            "conditioning='own'."
        )
