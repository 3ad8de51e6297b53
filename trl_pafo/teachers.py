"""Group -> teacher: a checkpoint, an adapter, or a model in memory. What a teacher is, and whether it fits the student."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from trl_pafo.errors import TeacherError
from trl_pafo.scoring import has_tokenizer, load_reward_model, local_folder

TeacherSpec = str | Path | torch.nn.Module

# Files of a checkpoint that decide what it answers.
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "config.json", "adapter_config.json")


@dataclass(frozen=True)
class Teacher:
    """
    A group's teacher.

    Parameters:
        group (`str`):
            The group whose preferences it has learnt.
        source (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Folder (or Hub id) of a checkpoint or an adapter, or the model itself.
    """

    group: str
    source: str | torch.nn.Module

    @property
    def name(self) -> str:
        """For people: the folder or id, or the class of a model in memory."""
        return self.source if isinstance(self.source, str) else type(self.source).__name__

    def identity(self) -> str | None:
        """Digest of all that decides the teacher's answers; `None` where it cannot be known (sharded parameters)."""
        return _digest_files(local_folder(self.source)) if isinstance(self.source, str) else _digest_module(self.source)

    def load(self, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        """The model, in evaluation mode, with frozen parameters where it was loaded here."""
        if not isinstance(self.source, str):
            return self.source
        return load_reward_model(local_folder(self.source), dtype).requires_grad_(False)

    def config(self) -> Any:
        """The configuration of the model, without its weights."""
        if not isinstance(self.source, str):
            return self.source.config
        folder = local_folder(self.source)
        adapter = folder / "adapter_config.json"
        if adapter.exists():
            base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
            return AutoConfig.from_pretrained(base, num_labels=1)
        return AutoConfig.from_pretrained(self.source)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer that was saved with the teacher, if one was."""
        if not isinstance(self.source, str):
            return None
        folder = local_folder(self.source)
        return AutoTokenizer.from_pretrained(folder) if has_tokenizer(folder) else None


def as_teachers(teachers: Mapping[str, TeacherSpec] | None) -> dict[str, Teacher]:
    """Check the types of a `teachers` argument and name its groups; nothing is loaded.

    Raises:
        TeacherError: If it is no mapping, or a value is neither path nor model.
    """
    if teachers is None:
        return {}
    if not isinstance(teachers, Mapping):
        raise TeacherError(
            f"`teachers` must map each group to a path or a model, got {type(teachers).__name__}; for example "
            '{"majority": "teachers/majority", "minority": "teachers/minority"}.'
        )
    result = {}
    for group, source in teachers.items():
        if not isinstance(source, (str, Path, torch.nn.Module)):
            raise TeacherError(f"The teacher of group {group!r} must be a path or a model, got {type(source).__name__}.")
        result[str(group)] = Teacher(str(group), str(source) if isinstance(source, Path) else source)
    return result


def check_teacher(teacher: Teacher, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise where a teacher cannot score the student's tokens; its weights are not loaded.

    Raises:
        TeacherError: If the teacher is not found, has other than one label, or has another tokenizer.
    """
    try:
        config = teacher.config()
    except (OSError, ValueError, KeyError) as error:
        raise TeacherError(f"The teacher of group {teacher.group!r} cannot be read at {teacher.name!r}: {error}") from error
    if getattr(config, "num_labels", None) != 1:
        raise TeacherError(
            f"The teacher of group {teacher.group!r} has num_labels={getattr(config, 'num_labels', None)}; a reward model has "
            "one. Train it with RewardTrainer, or load it with num_labels=1."
        )
    own = teacher.tokenizer()
    if own is not None and own.get_vocab() != tokenizer.get_vocab():
        raise TeacherError(
            f"The teacher of group {teacher.group!r} has another tokenizer than the student ({len(own)} tokens against "
            f"{len(tokenizer)}, or other ones), so it cannot score the student's token ids. Train the teacher on the student's "
            "tokenizer, or add its margins as a `teacher_margin` column."
        )
    vocabulary = config.get_text_config().vocab_size
    if own is None and vocabulary < len(tokenizer):
        raise TeacherError(
            f"The teacher of group {teacher.group!r} has a vocabulary of {vocabulary}, the student's tokenizer {len(tokenizer)}: "
            "it cannot score the student's token ids. Train it on the student's tokenizer, or add its margins as a "
            "`teacher_margin` column."
        )


def _digest_files(folder: Path) -> str:
    digest = hashlib.sha256()
    files = sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)})
    for path in files:
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    adapter = folder / "adapter_config.json"
    if adapter.exists():  # an adapter answers with its base's weights too
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        digest.update(_digest_files(local_folder(base)).encode())
    return digest.hexdigest()


def _digest_module(module: torch.nn.Module) -> str | None:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if tensor.numel() == 0:
            return None  # a shard of ZeRO-3: two different teachers would look the same
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
