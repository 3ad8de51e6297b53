"""Which pairs share a batch: those of similar length, drawn from seed and epoch alone, so that all processes draw the same and a
training that goes on from a checkpoint sees what it would have seen."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from trl_pafo.data.tokenization import ID_COLUMNS, sequence_lengths
from trl_pafo.prefix_sharing.rows import dataset_lengths, round_up


def is_tokenized(dataset: Any) -> bool:
    """Whether the lengths of the pairs are known: rows of ids that are no stream."""
    return isinstance(dataset, Dataset) and set(ID_COLUMNS) <= set(dataset.column_names)


def row_lengths(dataset: Dataset, collator: Any = None) -> NDArray[np.int64]:
    """Tokens of a row of each pair as a collator lays it out, of shape `(num_pairs,)`: with shared prefixes a pair has one row,
    else two, of which the longer one counts; rounded up to its `pad_to_multiple_of`.
    """
    if getattr(collator, "share_prefix", False):
        lengths = dataset_lengths(dataset).sum(axis=1)
    else:
        lengths = sequence_lengths(dataset).max(axis=1, initial=0)
    return round_up(lengths, getattr(collator, "pad_to_multiple_of", None))  # type: ignore[arg-type,return-value]


def longest_first(lengths: NDArray[np.int64]) -> list[int]:
    """Order of the rows in which batches are of similar length, and one that does not fit into memory is the first."""
    return np.argsort(-lengths, kind="stable").tolist()


class DrawnOrder(Sampler[int]):
    """
    The order of rows, drawn anew each epoch from seed and epoch alone; given their lengths, that of transformers'
    `LengthGroupedSampler`, in which `batch_size` rows are of similar length.

    Those of torch and transformers draw from the generator of the process, which differs between processes and after a checkpoint.
    """

    def __init__(self, num_rows: int, seed: int, lengths: NDArray[np.int64] | None = None, batch_size: int = 1):
        self.num_rows, self.seed, self.epoch = num_rows, seed, 0
        self.lengths, self.batch_size = None if lengths is None else lengths.tolist(), batch_size

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.lengths is None:
            return iter(torch.randperm(self.num_rows, generator=generator).tolist())
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class EpochOfSampler(TrainerCallback):
    """
    Tells the sampler of a training which epoch it is.

    The Trainer does too, but where a training of several processes goes on within an epoch, accelerate's wrapper that skips the
    batches that were seen does not pass it on.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Go through the wrappers to the sampler."""
        part = getattr(train_dataloader, "batch_sampler", None)
        while part is not None:
            if hasattr(part, "set_epoch"):
                part.set_epoch(int(state.epoch or 0))
            part = getattr(part, "batch_sampler", None) or getattr(part, "sampler", None)
