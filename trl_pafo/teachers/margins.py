"""Teacher margins: computed once, kept under the identity of teacher and tokens, gathered row by row."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_pafo.errors import TeacherError
from trl_pafo.storage.files import replacing, write_text, writing
from trl_pafo.teachers.loaded import TeacherModels, by_backbone, check_filled
from trl_pafo.teachers.teacher import QuantizedBase, Teacher

logger = logging.getLogger(__name__)

# Goes into every key: change it when the same teacher and tokens would give other margins.
_FORMAT = "trl-pafo margins 1"


def compute_teacher_margins(
    dataset: Dataset,
    teachers: Mapping[str, Teacher],
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    *,
    batch_size: int,
    cache_dir: str | Path,
    dtype: torch.dtype = torch.float32,
    quantized: QuantizedBase | None = None,
    prefix_sharing: str = "off",
) -> np.ndarray:
    """Margin of the teacher of each row's group, in reward units.

    One teacher is in memory at a time and each row is scored by one teacher only. The margins of a teacher are stored in
    `cache_dir` under a digest of its weights, its pad id, the dtype and the token ids it scored: whatever would
    change a margin changes the file's name, and nothing else does.

    Args:
        dataset ([`~datasets.Dataset`]):
            Tokenized rows with `chosen_ids`, `rejected_ids`, `group`.
        teachers (`Mapping[str, Teacher]`):
            Teacher of each group.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The student's tokenizer, which made the ids.
        accelerator ([`~accelerate.Accelerator`]):
            Each process scores its share of the rows.
        batch_size (`int`):
            Pairs in a forward pass.
        cache_dir (`str` or `Path`):
            Where the margins are kept.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Number format in which teachers are loaded from disk.
        quantized ([`QuantizedBase`], *optional*):
            The student's base, on which teachers that are its adapters are loaded too.
        prefix_sharing (`str`, *optional*, defaults to `"off"`):
            `"auto"`: what both responses of a pair begin with is computed once, where that pays. Margins differ by rounding alone, so
            it is not part of the digest.

    Returns:
        `np.ndarray` of shape `(num_rows,)`, float32.
    """
    group = np.asarray(dataset["group"])
    margins = np.full(len(dataset), np.nan, dtype=np.float32)
    rows = {name: np.flatnonzero(group == name) for name in teachers}
    records: dict[str, _Record] = {}
    missing: dict[str, Teacher] = {}
    for name, teacher in teachers.items():
        if not len(rows[name]):
            continue
        identity = _identity_of(teacher, accelerator)
        about = [identity, teacher.pad_id(tokenizer), str(dtype), accelerator.mixed_precision]
        if quantized is not None and (config := quantized.config_for(teacher)) is not None:
            about.append(repr(sorted(config.to_dict().items(), key=str)))
        records[name] = _Record.of(about, *_tokens(dataset, rows[name]), Path(cache_dir))
        kept = records[name].read(accelerator)
        if kept is None:
            missing[name] = teacher
        else:
            logger.info("Margins of the teacher of %s are reused from %s.", name, records[name].path)
            margins[rows[name]] = kept
    for together in by_backbone(missing):
        with TeacherModels(together, tokenizer, accelerator, dtype, quantized) as models:
            for name, teacher in together.items():
                chosen, rejected = _tokens(dataset, rows[name])
                margins[rows[name]] = models.margins(
                    name,
                    chosen,
                    rejected,
                    batch_size=batch_size,
                    prefix_sharing=prefix_sharing,
                    desc=f"Margins of the teacher of {name}",
                )
                records[name].write(margins[rows[name]], teacher, accelerator)
    check_filled(margins, "margins")
    return margins


def _tokens(dataset: Dataset, rows: np.ndarray) -> tuple[list[list[int]], list[list[int]]]:
    part = dataset.select(rows)
    return part["chosen_ids"][:], part["rejected_ids"][:]


def _identity_of(teacher: Teacher, accelerator: Accelerator) -> str | None:
    """Files are read by one process; a model in memory by each, since each has its own."""
    if isinstance(teacher.source, str):
        found = [teacher.identity() if accelerator.is_main_process else None]
        broadcast_object_list(found, from_process=0)
    elif len(set(found := gather_object([teacher.identity()]))) > 1:
        raise TeacherError(
            f"The model given as the teacher of group {teacher.group!r} has other weights on other processes. Under FSDP with "
            "`cpu_ram_efficient_loading` only the first process may have them all: give the teacher by its path."
        )
    return found[0]


@dataclass(frozen=True)
class _Record:
    """Where the margins of one teacher for one list of pairs are kept; no path where they cannot be."""

    path: Path | None
    identity: str | None

    @classmethod
    def of(
        cls, about: Sequence[Any], chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]], cache_dir: Path
    ) -> "_Record":
        identity = about[0]
        if identity is None:
            return cls(None, None)
        key = hashlib.sha256(json.dumps([_FORMAT, *about, _digest_tokens(chosen, rejected)]).encode()).hexdigest()[:32]
        return cls(cache_dir / f"{key}.npy", identity)

    def read(self, accelerator: Accelerator) -> np.ndarray | None:
        """The margins, if they are there. The main process reads them for all: others may not see its disk."""
        is_there = self.path is not None and accelerator.is_main_process and self.path.exists()
        found = [np.load(self.path, allow_pickle=False) if is_there else None]  # type: ignore[arg-type]
        broadcast_object_list(found, from_process=0)
        return found[0]

    def write(self, margins: np.ndarray, teacher: Teacher, accelerator: Accelerator) -> None:
        if self.path is not None and accelerator.is_main_process:
            _store(
                self.path,
                margins,
                {"format": _FORMAT, "group": teacher.group, "teacher": teacher.name, "identity": self.identity},
            )
        accelerator.wait_for_everyone()


def _digest_tokens(chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]]) -> str:
    digest = hashlib.sha256()
    for side in (chosen, rejected):
        digest.update(np.fromiter((len(ids) for ids in side), dtype=np.int64).tobytes())
        for ids in side:
            digest.update(np.asarray(ids, dtype=np.int64).tobytes())
    return digest.hexdigest()


def _store(path: Path, margins: np.ndarray, about: dict[str, str | None]) -> None:
    """The margins last: they are what a later run looks for."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path.with_suffix(".json"), json.dumps({**about, "pairs": len(margins)}, indent=2) + "\n")
    with replacing(path) as aside, open(aside, "wb") as file:
        np.save(file, margins, allow_pickle=False)


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
    labeled = has_label.astype(bool)
    pooled = np.sqrt(np.mean(np.square(margins[labeled], dtype=np.float64)))
    scaled = margins.astype(np.float64)
    for name in np.unique(group):
        rows = group == name
        own = np.sqrt(np.mean(np.square(scaled[rows & labeled])))
        if not own > 0:
            raise TeacherError(
                f"The teacher of group {str(name)!r} has margin 0 on all pairs of its group: it has learnt nothing."
            )
        scaled[rows] *= pooled / own
    return scaled.astype(np.float32)
