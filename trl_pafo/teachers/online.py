"""Teachers of a stream, whose margins cannot be computed before training: they score the rows of each batch, and stay in memory."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from trl_pafo.errors import TeacherError
from trl_pafo.teachers.loaded import by_backbone, check_filled
from trl_pafo.teachers.teacher import Teacher


@dataclass
class TeacherRows:
    """The pairs of a batch as they came, however the student's collator lays them out; on the host."""

    group: list[str]
    chosen: list[list[int]]
    rejected: list[list[int]]


@dataclass
class TeacherRowsCollator:
    """Any collator, with what the teachers of a stream need beside what it returns: `"teacher_rows"`, and `"has_label"`."""

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = TeacherRows(*([row[key] for row in examples] for key in ("group", "chosen_ids", "rejected_ids")))
        has_label = torch.tensor([bool(example.get("has_label", True)) for example in examples])
        return {**self.collator(examples), "has_label": has_label, "teacher_rows": rows}


class OnlineTeachers:
    """
    Margins of the teachers for the rows of a batch. The teachers are loaded at the first batch.

    Args:
        teachers (`Mapping[str, Teacher]`):
            Teacher of each group.
        load (`Callable`):
            Takes the teachers of one backbone and returns a [`~trl_pafo.teachers.loaded.TeacherModels`].
    """

    def __init__(self, teachers: Mapping[str, Teacher], load: Callable[[Mapping[str, Teacher]], Any]):
        self.teachers, self.load = teachers, load
        self._stack = ExitStack()
        self._models: dict[str, Any] = {}

    def margins(self, rows: TeacherRows) -> torch.Tensor:
        """Margin of the teacher of each row's group, shape `(num_pairs,)`, float32, on the host.

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
            for together in by_backbone(self.teachers):
                self._models |= dict.fromkeys(together, self._stack.enter_context(self.load(together)))
        margins = torch.full((len(rows.group),), torch.nan)
        for group, models in self._models.items():
            own = [place for place, name in enumerate(rows.group) if name == group]
            sequences = [*(rows.chosen[i] for i in own), *(rows.rejected[i] for i in own)]
            rewards = torch.from_numpy(models.forward(group, sequences or [rows.chosen[0]]))
            margins[own] = rewards[: len(own)] - rewards[len(own) : 2 * len(own)]
        check_filled(margins.numpy(), "margins of a batch")
        return margins

    def close(self) -> None:
        """Free the teachers; the next batch loads them again."""
        self._models = {}
        self._stack.close()
