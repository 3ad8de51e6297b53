"""Teacher margins: each pair scored once by a teacher, and kept on disk under the identity of teacher and tokens."""

import hashlib
import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_pafo.models.ranks import same_model
from trl_pafo.storage.files import replacing
from trl_pafo.trainer.loaded_teachers import TeacherModels, by_backbone
from trl_pafo.trainer.teacher import QuantizedBase, Teacher

logger = logging.getLogger(__name__)

# Goes into every key: change it when the same teacher and tokens would give other margins.
_FORMAT = "trl-pafo margins 1"


class TeacherMargins:
    """
    Margins of teachers for pairs of token sequences, in reward units.

    One backbone is in memory at a time. What was scored is kept in `cache_dir` under a digest of the teacher's weights, its pad id,
    the dtype and the token ids, so that whatever would change a margin changes the name of its file, and nothing else does. Margins
    with shared prefixes (`"auto"`) differ by rounding alone, so that is not part of the digest.

    A teacher without a pad id of its own gets that of the student's tokenizer. Each process scores its share of the pairs,
    `batch_size` at a time. Teachers are loaded in `dtype`, and those that are adapters of the student's `quantized` base on it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        *,
        batch_size: int = 16,
        cache_dir: str | Path = "teacher_margins",
        dtype: torch.dtype = torch.float32,
        quantized: QuantizedBase | None = None,
        prefix_sharing: str = "off",
    ):
        self.tokenizer, self.accelerator = tokenizer, accelerator
        self.cache_dir, self.dtype, self.quantized = Path(cache_dir), dtype, quantized
        self.batch_size, self.prefix_sharing = batch_size, prefix_sharing
        self._load = partial(TeacherModels, tokenizer=tokenizer, accelerator=accelerator, dtype=dtype, quantized=quantized)

    def __call__(self, teachers: Mapping[str, Teacher], pairs: Mapping[str, Dataset]) -> dict[str, np.ndarray]:
        """Margins of each teacher for its pairs, rows of token ids as this teacher reads them: by group, float32, of shape
        `(num_pairs,)`.

        Raises:
            TeacherError: If a reward is not finite.
            DataError: If a sequence is longer than the teacher's positions.
        """
        files = {group: self._file_of(teacher, pairs[group]) for group, teacher in teachers.items()}
        margins: dict[str, np.ndarray] = {}
        for group, file in files.items():
            kept = self._read(file)
            if kept is not None:
                logger.info("Margins of the teacher of %s are reused from %s.", group, file)
                margins[group] = kept
        missing = {group: teachers[group] for group in teachers if group not in margins}
        if self.accelerator.num_processes > 1:
            for teacher in missing.values():
                same_model(teacher.source, teacher.identity())
        for together in by_backbone(missing):
            with self._load(together) as models:
                for group in together:
                    margins[group] = models.margins(
                        group,
                        *_tokens(pairs[group]),
                        batch_size=self.batch_size,
                        prefix_sharing=self.prefix_sharing,
                        desc=f"Margins of the teacher of {group}",
                    )
                    self._write(files[group], margins[group])
        return margins

    def _file_of(self, teacher: Teacher, pairs: Dataset) -> Path:
        """Where the margins of a teacher for these pairs are kept."""
        identity = [teacher.identity() if self.accelerator.is_main_process else None]  # one process reads the files
        broadcast_object_list(identity, from_process=0)
        about = [_FORMAT, *identity, teacher.pad_id(self.tokenizer), str(self.dtype), self.accelerator.mixed_precision]
        if self.quantized is not None and (config := self.quantized.config_for(teacher)) is not None:
            about.append(repr(sorted(config.to_dict().items(), key=str)))
        if (precision := _product_precision()) in ("tf32", "bf16"):
            about.append(precision)
        digest = hashlib.sha256(json.dumps(about).encode())
        for side in _tokens(pairs):
            for ids in side:
                digest.update(np.array([len(ids), *ids], dtype=np.int64).tobytes())
        return self.cache_dir / f"{digest.hexdigest()[:32]}.npy"

    def _read(self, file: Path) -> np.ndarray | None:
        """The margins, if they are there. The main process reads them for all: others may not see its disk."""
        found: list[np.ndarray | None] = [None]
        if self.accelerator.is_main_process and file.exists():
            try:
                found = [np.load(file, allow_pickle=False)]
            except (EOFError, ValueError) as error:
                logger.warning("%s is damaged (%s): its margins are computed anew.", file, error)
        broadcast_object_list(found, from_process=0)
        return found[0]

    def _write(self, file: Path, margins: np.ndarray) -> None:
        if self.accelerator.is_main_process:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary, open(temporary, "wb") as stream:
                np.save(stream, margins, allow_pickle=False)
        self.accelerator.wait_for_everyone()


def _product_precision() -> str:
    """Of products of matrices in float32 on a GPU: TF32 rounds about as bfloat16 does."""
    products = torch.backends.cuda.matmul
    if hasattr(products, "fp32_precision"):
        return str(products.fp32_precision)
    return "tf32" if products.allow_tf32 else "ieee"  # torch before 2.9


def _tokens(pairs: Dataset) -> tuple[list[list[int]], list[list[int]]]:
    return pairs["chosen_ids"][:], pairs["rejected_ids"][:]
