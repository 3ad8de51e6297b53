"""Teachers of a stream, whose margins cannot be computed before training: they score the rows of each batch, and stay in memory."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase, TrainerCallback

from trl_pafo.errors import TeacherError
from trl_pafo.teachers.loaded import TeacherModels, by_backbone, check_filled
from trl_pafo.teachers.teacher import QuantizedBase, Teacher

TEACHER_ROWS = "teacher_rows"
"""Key that [`TeacherRowsCollator`] adds to a batch."""


@dataclass
class TeacherRows:
    """The pairs of a batch as they came, however the student's collator lays them out; on the host."""

    group: list[str]
    chosen: list[list[int]]
    rejected: list[list[int]]

    def ids(self, groups: Sequence[str]) -> torch.Tensor:
        """The place of each row's group in `groups`, -1 for none."""
        places = {name: place for place, name in enumerate(groups)}
        return torch.tensor([places.get(group, -1) for group in self.group])


@dataclass
class TeacherRowsCollator:
    """
    Any collator, with what the teachers of a stream need beside what it returns: `"teacher_rows"`, and `"has_label"`.

    Args:
        collator (`Callable`):
            Collator of the rows.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = TeacherRows(*([row[key] for row in examples] for key in ("group", "chosen_ids", "rejected_ids")))
        has_label = torch.tensor([bool(example.get("has_label", True)) for example in examples])
        return {**self.collator(examples), "has_label": has_label, TEACHER_ROWS: rows}


class OnlineTeachers(TrainerCallback):
    """
    Margins of the teachers for the rows of a batch. The teachers are loaded at the first batch and freed when training ends.

    Args:
        teachers (`dict[str, Teacher]`):
            Teacher of each group.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The student's tokenizer.
        accelerator ([`~accelerate.Accelerator`]):
            Says where the teachers go.
        dtype (`torch.dtype`):
            Number format in which they are loaded.
        clip (`float`, *optional*):
            Margins are clipped to plus or minus this, in reward units.
        quantized ([`QuantizedBase`], *optional*):
            The student's base, on which teachers that are its adapters are loaded too.
    """

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        dtype: torch.dtype,
        clip: float | None = None,
        quantized: QuantizedBase | None = None,
    ):
        self.quantized = quantized
        self.teachers, self.tokenizer, self.accelerator, self.dtype, self.clip = teachers, tokenizer, accelerator, dtype, clip
        self._stack = ExitStack()
        self._models: dict[str, TeacherModels] = {}

    def margins(self, rows: TeacherRows) -> torch.Tensor:
        """Margin of the teacher of each row's group, shape `(num_pairs,)`, float32, on the device of the run.

        Every teacher scores once on every process, whether or not one of its rows is there: sharded weights need all of them.

        Raises:
            TeacherError: If a row's group has no teacher, or a reward is not finite.
        """
        if unknown := sorted(map(repr, set(rows.group) - set(self.teachers))):
            raise TeacherError(
                f"The stream has rows of the group {unknown[0]}, for which there is no teacher. Add one to `teachers`, or leave "
                "these rows out."
            )
        if not self._models:
            self._load()
        margins = torch.full((len(rows.group),), torch.nan)
        for group, models in self._models.items():
            own = [place for place, name in enumerate(rows.group) if name == group]
            sequences = [*(rows.chosen[i] for i in own), *(rows.rejected[i] for i in own)]
            rewards = torch.from_numpy(models.forward(group, sequences or [rows.chosen[0]]))
            margins[own] = rewards[: len(own)] - rewards[len(own) : 2 * len(own)]
        check_filled(margins.numpy(), "margins of a batch")
        if self.clip is not None:
            margins = margins.clamp(-self.clip, self.clip)
        return margins.to(self.accelerator.device)

    def _load(self) -> None:
        for together in by_backbone(self.teachers):
            models = self._stack.enter_context(
                TeacherModels(together, self.tokenizer, self.accelerator, self.dtype, self.quantized)
            )
            self._models |= dict.fromkeys(together, models)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Free the teachers; the next training loads them again."""
        self._models = {}
        self._stack.close()
