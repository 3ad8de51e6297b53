"""Teacher margins: given as a column, computed once and kept under the identity of teacher and tokens, or scored as a stream comes."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_pafo.errors import ConfigError, TeacherError
from trl_pafo.storage.files import replacing, writing
from trl_pafo.teachers.agreement import Agreement, TeacherAgreement
from trl_pafo.teachers.loaded import TeacherModels, by_backbone, check_filled
from trl_pafo.teachers.online import OnlineTeachers
from trl_pafo.teachers.teacher import QuantizedBase, Teacher

logger = logging.getLogger(__name__)

# Goes into every key: change it when the same teacher and tokens would give other margins.
_FORMAT = "trl-pafo margins 1"


class TeacherMargins:
    """
    The margin of the teacher of each row's group, in reward units: [`attach`] it to a dataset, then read it [`of_batch`].

    A dataset may bring them in the column `teacher_margin`. Else each row is scored by one teacher, with one teacher in memory at a
    time; what was scored is kept on disk under a digest of the teacher's weights, its pad id, the dtype and the token ids, so that
    whatever would change a margin changes the name of its file, and nothing else does. The teachers of a stream score each batch.

    Args:
        teachers (`Mapping[str, Teacher]`):
            Teacher of each group; none where the rows bring margins.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The student's tokenizer, which made the token ids.
        accelerator ([`~accelerate.Accelerator`]):
            Each process scores its share of the rows.
        groups (`Iterable[str]`, *optional*):
            Groups in the order of the group ids of batches.
        batch_size (`int`, *optional*, defaults to `16`):
            Pairs in a forward pass of a teacher.
        cache_dir (`str` or `Path`, *optional*, defaults to `"teacher_margins"`):
            Where margins are kept.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            In which teachers are loaded from disk.
        quantized ([`QuantizedBase`], *optional*):
            The student's base, on which teachers that are its adapters are loaded too.
        prefix_sharing (`str`, *optional*, defaults to `"off"`):
            `"auto"`: what both responses of a pair begin with is computed once, where that pays. Margins differ by rounding alone, so
            it is not part of the digest.
        scale (`str`, *optional*, defaults to `"none"`):
            `"rms"`: see [`scale_margins`].
        clip (`float`, *optional*):
            Margins are clipped to plus or minus this, in reward units, after scaling.
    """

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        *,
        groups: Iterable[str] = (),
        batch_size: int = 16,
        cache_dir: str | Path = "teacher_margins",
        dtype: torch.dtype = torch.float32,
        quantized: QuantizedBase | None = None,
        prefix_sharing: str = "off",
        scale: str = "none",
        clip: float | None = None,
    ):
        self.teachers, self.tokenizer, self.accelerator = dict(teachers), tokenizer, accelerator
        self.cache_dir, self.dtype, self.quantized = Path(cache_dir), dtype, quantized
        self.batch_size, self.prefix_sharing, self.scale, self.clip = batch_size, prefix_sharing, scale, clip
        self._load = partial(TeacherModels, tokenizer=tokenizer, accelerator=accelerator, dtype=dtype, quantized=quantized)
        self.online: OnlineTeachers | None = None
        """Teachers that score each batch of a stream."""
        self._agreement = TeacherAgreement(self.teachers or groups)
        self._is_stream = False

    @property
    def agreement(self) -> list[Agreement]:
        """How far the teacher of each group agrees with its labels: on all rows, or on those of a stream up to the last log."""
        return self._agreement.found

    def attach(self, dataset: Any) -> Any:
        """A dataset of tokenized rows with the column `teacher_margin`, float32, scaled and clipped; a stream as it is.

        The teachers are let go where they are not needed any more.

        Raises:
            TeacherError: If a row's group has no teacher, or a reward is not finite.
        """
        teachers, self.teachers = self.teachers, {}
        if not isinstance(dataset, Dataset):
            self._is_stream = True
            if teachers:
                self.online = OnlineTeachers(teachers, self._load)
            return dataset
        if "teacher_margin" in dataset.column_names:
            margins = np.asarray(dataset.with_format("numpy")["teacher_margin"][:], dtype=np.float32)
            dataset = dataset.remove_columns("teacher_margin")
        else:
            margins = self._compute(dataset, teachers)
        columns = dataset.column_names
        has_label = np.asarray(dataset["has_label"][:], dtype=bool) if "has_label" in columns else np.ones(len(dataset), bool)
        group = np.asarray(dataset["group"][:]) if "group" in columns else np.full(len(dataset), "")
        self._agreement = TeacherAgreement(sorted({name for name in group.tolist() if name}))
        self._agreement.add(torch.from_numpy(margins), torch.from_numpy(has_label), self._agreement.ids(group))
        self._agreement.reduce()
        if self.scale == "rms":
            margins = scale_margins(margins, group, has_label)
        if self.clip is not None:
            margins = margins.clip(-self.clip, self.clip)
        return dataset.add_column("teacher_margin", margins)  # type: ignore[arg-type]

    def of_batch(self, batch: Any) -> torch.Tensor:
        """Margins of the rows of a batch, of shape `(num_pairs,)`.

        Args:
            batch ([`~trl_pafo.trainer.collator.PairBatch`]):
                With `teacher_margin`, or with `teacher_rows` of a stream that the teachers score now.

        Raises:
            ConfigError: If the collator has dropped the margins.
        """
        margins, ids = batch.teacher_margin, batch.group_id
        if batch.teacher_rows is not None and self.online is not None:
            margins = self.online.margins(batch.teacher_rows).to(self.accelerator.device)
            ids = self._agreement.ids(batch.teacher_rows.group).to(margins.device)
        if margins is None:
            raise ConfigError(
                "The data collator drops `teacher_margin`, so nothing could be distilled. Use DataCollatorForGroupPreference, or "
                "leave `data_collator` out."
            )
        if self._is_stream:
            self._agreement.add(margins, batch.has_label, ids)
        return margins if self.clip is None else margins.clamp(-self.clip, self.clip)

    def new_logs(self, history: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """What to log of the agreement: of a stream every time, of a dataset, whose agreement does not change, once."""
        found = self._agreement.reduce(self.accelerator.gather if self._is_stream else None)
        is_old = not self._is_stream and any(found.items() <= entry.items() for entry in history)
        return {} if is_old else found

    def close(self) -> None:
        """Free the teachers of a stream; the next batch loads them again."""
        if self.online is not None:
            self.online.close()

    def _compute(self, dataset: Dataset, teachers: Mapping[str, Teacher]) -> np.ndarray:
        group = np.asarray(dataset["group"])
        margins = np.full(len(dataset), np.nan, dtype=np.float32)
        rows: dict[str, Dataset] = {}
        files: dict[str, Path | None] = {}
        for name, teacher in teachers.items():
            rows[name] = dataset.select(np.flatnonzero(group == name))
            if not len(rows[name]):
                continue
            files[name] = self._file_of(teacher, rows[name])
            kept = self._read(files[name])
            if kept is not None:
                logger.info("Margins of the teacher of %s are reused from %s.", name, files[name])
                margins[group == name] = kept
                del files[name]
        for together in by_backbone({name: teachers[name] for name in files}):
            with self._load(together) as models:
                for name in together:
                    margins[group == name] = models.margins(
                        name,
                        *_tokens(rows[name]),
                        batch_size=self.batch_size,
                        prefix_sharing=self.prefix_sharing,
                        desc=f"Margins of the teacher of {name}",
                    )
                    self._write(files[name], margins[group == name])
        check_filled(margins, "margins")
        return margins

    def _file_of(self, teacher: Teacher, rows: Dataset) -> Path | None:
        """Where the margins of a teacher for these rows are kept; `None` where it has no identity."""
        identity = self._identity_of(teacher)
        if identity is None:
            return None
        about: list[Any] = [_FORMAT, identity, teacher.pad_id(self.tokenizer), str(self.dtype), self.accelerator.mixed_precision]
        if self.quantized is not None and (config := self.quantized.config_for(teacher)) is not None:
            about.append(repr(sorted(config.to_dict().items(), key=str)))
        digest = hashlib.sha256(json.dumps(about).encode())
        for side in _tokens(rows):
            for ids in side:
                digest.update(np.array([len(ids), *ids], dtype=np.int64).tobytes())
        return self.cache_dir / f"{digest.hexdigest()[:32]}.npy"

    def _identity_of(self, teacher: Teacher) -> str | None:
        """Files are read by one process; a model in memory by each, since each has its own."""
        if isinstance(teacher.source, str):
            found = [teacher.identity() if self.accelerator.is_main_process else None]
            broadcast_object_list(found, from_process=0)
        elif len(set(found := gather_object([teacher.identity()]))) > 1:
            raise TeacherError(
                f"The model given as the teacher of group {teacher.group!r} has different weights on different processes. Under "
                "FSDP with `cpu_ram_efficient_loading` only the first process may have them all: give the teacher by its path."
            )
        return found[0]

    def _read(self, file: Path | None) -> np.ndarray | None:
        """The margins, if they are there. The main process reads them for all: others may not see its disk."""
        is_there = file is not None and self.accelerator.is_main_process and file.exists()
        found = [np.load(file, allow_pickle=False) if is_there else None]  # type: ignore[arg-type]
        broadcast_object_list(found, from_process=0)
        return found[0]

    def _write(self, file: Path | None, margins: np.ndarray) -> None:
        if file is not None and self.accelerator.is_main_process:
            with writing(file):
                file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary, open(temporary, "wb") as stream:
                np.save(stream, margins, allow_pickle=False)
        self.accelerator.wait_for_everyone()


def _tokens(rows: Dataset) -> tuple[list[list[int]], list[list[int]]]:
    return rows["chosen_ids"][:], rows["rejected_ids"][:]


def scale_margins(margins: np.ndarray, group: np.ndarray, has_label: np.ndarray) -> np.ndarray:
    """Put the margins of all teachers on one scale. (Not from the paper: two Bradley-Terry models have no common scale.)

    Each teacher's margins are divided by their root mean square over the labeled pairs of its own group and multiplied by
    the root mean square over all labeled pairs, each under its own teacher.

    Args:
        margins (`np.ndarray` of shape `(num_rows,)`):
            Margins, each of the teacher of the row's group.
        group (`np.ndarray` of shape `(num_rows,)`):
            Group of each row.
        has_label (`np.ndarray` of shape `(num_rows,)`, bool):
            False on counterfactual rows, which do not enter the scale.

    Raises:
        TeacherError: If a teacher's margins are all zero.
    """
    squares = np.square(margins, dtype=np.float64)
    scaled = margins * np.sqrt(squares[has_label].mean())
    for name in np.unique(group):
        rows = group == name
        own = squares[rows & has_label].mean()
        if not own > 0:
            raise TeacherError(
                f"The teacher of group {str(name)!r} has margin 0 on all pairs of its group: it has learned nothing."
            )
        scaled[rows] /= np.sqrt(own)
    return scaled.astype(np.float32)
