"""Teacher margins: computed once, kept under the identity of teacher and tokens, gathered row by row."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_pafo.errors import TeacherError
from trl_pafo.scoring import pad_id_of, score_pairs
from trl_pafo.teachers import Teacher

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
) -> np.ndarray:
    """Margin of the teacher of each row's group, in reward units.

    One teacher is in memory at a time and each row is scored by one teacher only. The margins of a teacher are stored in
    `cache_dir` under a digest of its weights, its pad id, the number format and the token ids it scored: whatever would
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

    Returns:
        `np.ndarray` of shape `(num_rows,)`, float32.
    """
    group = np.asarray(dataset["group"])
    margins = np.full(len(dataset), np.nan, dtype=np.float32)
    for name, teacher in teachers.items():
        rows = np.flatnonzero(group == name)
        if not len(rows):
            continue
        part = dataset.select(rows)
        chosen, rejected = part["chosen_ids"][:], part["rejected_ids"][:]
        margins[rows] = _margins_of(
            teacher, chosen, rejected, tokenizer, accelerator, batch_size=batch_size, cache_dir=Path(cache_dir), dtype=dtype
        )
    return margins


def _margins_of(
    teacher: Teacher,
    chosen: Sequence[Sequence[int]],
    rejected: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    *,
    batch_size: int,
    cache_dir: Path,
    dtype: torch.dtype,
) -> np.ndarray:
    identity = teacher.identity()
    autocast = accelerator.mixed_precision
    pad = pad_id_of(teacher.config(), tokenizer)
    path = None
    if identity is not None:
        tokens = _digest_tokens(chosen, rejected)
        key = hashlib.sha256(json.dumps([_FORMAT, identity, pad, str(dtype), autocast, tokens]).encode()).hexdigest()[:32]
        path = cache_dir / f"{key}.npy"
    # All processes must do the same, and a shared disk may show the file to some of them only.
    found = [path is not None and path.exists()]
    broadcast_object_list(found, from_process=0)
    if path is not None and found[0]:
        logger.info("Margins of the teacher of %s are reused from %s.", teacher.group, path)
        return np.load(path, allow_pickle=False)

    _refuse_sharding(accelerator, teacher)
    mine = range(accelerator.process_index, len(chosen), accelerator.num_processes)
    model = teacher.load(dtype)
    before = next(model.parameters()).device
    model.to(accelerator.device)
    try:
        rewards = score_pairs(
            model,
            [chosen[row] for row in mine],
            [rejected[row] for row in mine],
            pad,
            batch_size=2 * batch_size,
            device=accelerator.device,
            autocast=accelerator.autocast,
            desc=f"Margins of the teacher of {teacher.group}" if accelerator.is_main_process else None,
        )
    finally:
        model.to(before)
    shares = gather_object([(list(mine), (rewards[0] - rewards[1]).tolist())])
    margins = np.empty(len(chosen), dtype=np.float32)
    for rows, values in shares:
        margins[rows] = values
    if path is not None and accelerator.is_main_process:
        _store(path, margins, {"format": _FORMAT, "group": teacher.group, "teacher": teacher.name, "identity": identity})
    accelerator.wait_for_everyone()
    return margins


def _refuse_sharding(accelerator: Accelerator, teacher: Teacher) -> None:
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3 and isinstance(teacher.source, str):
        raise TeacherError(
            "Teacher margins cannot be computed under DeepSpeed ZeRO-3 yet. Compute them once in a plain process (they are kept "
            "in `teacher_margin_cache_dir` and reused here), or add a `teacher_margin` column."
        )


def _digest_tokens(chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]]) -> str:
    digest = hashlib.sha256()
    for side in (chosen, rejected):
        digest.update(np.fromiter((len(ids) for ids in side), dtype=np.int64).tobytes())
        for ids in side:
            digest.update(np.asarray(ids, dtype=np.int64).tobytes())
    return digest.hexdigest()


def _store(path: Path, margins: np.ndarray, about: dict[str, str | None]) -> None:
    """Write aside and rename, so that a killed run leaves no half-written margins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    with open(aside, "wb") as file:
        np.save(file, margins, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    path.with_suffix(".json").write_text(json.dumps({**about, "pairs": len(margins)}, indent=2) + "\n", encoding="utf-8")


def scale_margins(margins: np.ndarray, group: np.ndarray, has_label: np.ndarray) -> np.ndarray:
    """Put the margins of all teachers on one scale. (Ours: two Bradley-Terry models have no common scale.)

    Each teacher's margins are divided by their root mean square over the labelled pairs of its own group and multiplied by
    the root mean square over all labelled pairs, each under its own teacher.

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
    labelled = has_label.astype(bool)
    pooled = np.sqrt(np.mean(np.square(margins[labelled], dtype=np.float64)))
    scaled = margins.astype(np.float64)
    for name in np.unique(group):
        rows = group == name
        own = np.sqrt(np.mean(np.square(scaled[rows & labelled])))
        if not own > 0:
            raise TeacherError(
                f"The teacher of group {str(name)!r} has margin 0 on all pairs of its group: it has learnt nothing."
            )
        scaled[rows] *= pooled / own
    return scaled.astype(np.float32)
