"""Which pairs share a batch: those of similar length, so many of them or so many tokens.

Everything is drawn from seed and epoch alone. So all processes draw the same without a word between them, and a training that
goes on from a checkpoint sees what it would have seen.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, Sampler
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import seed_worker

from trl_pafo.data.tokenization import ID_COLUMNS, sequence_lengths
from trl_pafo.errors import ConfigError
from trl_pafo.prefix_sharing.rows import PAIR_LENGTHS, dataset_lengths, round_up

_SPREAD = 0.9
"""Pairs that change places from epoch to epoch are at least this share as long as the longest of them."""


def is_tokenized(dataset: Any) -> bool:
    """Whether the lengths of the pairs are known: rows of ids that are no stream."""
    return isinstance(dataset, Dataset) and set(ID_COLUMNS) <= set(dataset.column_names)


def row_lengths(dataset: Dataset, collator: Any = None) -> NDArray[np.int64]:
    """Tokens of a row of each pair as a collator lays it out, of shape `(num_pairs,)`.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `chosen_ids` and `rejected_ids`.
        collator (`Callable`, *optional*):
            With shared prefixes ([`DataCollatorForGroupPreference`]) a pair has one row, else two, of which the longer one counts.
            Rounded up to its `pad_to_multiple_of`.
    """
    if rows_a_pair(collator) == 1:
        lengths = dataset_lengths(dataset).sum(axis=1)
    else:
        lengths = sequence_lengths(dataset).max(axis=1, initial=0)
    return round_up(lengths, getattr(collator, "pad_to_multiple_of", None))  # type: ignore[arg-type,return-value]


def rows_a_pair(collator: Any) -> int:
    """Rows of a pair in a batch."""
    return 1 if getattr(collator, "share_prefix", False) else 2


def num_pairs(batch: dict[str, Any]) -> int:
    """Pairs of a batch that a collator has made."""
    return len(batch[PAIR_LENGTHS]) if PAIR_LENGTHS in batch else len(batch["input_ids"]) // 2


def longest_first(lengths: NDArray[np.int64]) -> list[int]:
    """Order of the rows in which batches are of similar length, and one that does not fit into memory is the first."""
    return np.argsort(-lengths, kind="stable").tolist()


class LengthGroupedSampler(Sampler[int]):
    """
    The order of transformers' `LengthGroupedSampler`, drawn anew each epoch from seed and epoch.

    Its own draws from the generator of the process, which differs between processes and after a checkpoint.

    Args:
        lengths (`np.ndarray` of shape `(num_rows,)`):
            Length of each row.
        batch_size (`int`):
            Rows that should be of similar length.
        seed (`int`):
            Seed.
    """

    def __init__(self, lengths: NDArray[np.int64], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths.tolist(), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class TokenBudgetBatchSampler(BatchSampler):
    """
    Batches of as many pairs of similar length as fit into a budget of tokens, padding included; each pair once an epoch. (Not from the paper.)

    The pairs stand in the order of their length, those of equal length in an order that is drawn. From the longest on, windows are
    cut: as many whole batches of one size as stay within a tenth of the window's longest pair. Each epoch shuffles the pairs of a
    window and then all batches. The sizes of the batches depend on the lengths alone, so every epoch has as many steps.

    Args:
        lengths (`np.ndarray` of shape `(num_pairs,)`):
            Length of the rows of each pair ([`row_lengths`]).
        max_tokens (`int`):
            Tokens of a batch, at most, but for pairs that are longer alone.
        rows_a_pair (`int`, *optional*, defaults to `2`):
            Rows of a pair in a batch, of that length each.
        max_pairs (`int`, *optional*):
            Pairs of a batch, at most.
        num_processes (`int`, *optional*, defaults to `1`):
            The number of batches is a multiple of this: processes take turns, and all have as many. The largest batches are halved
            until it is.
        seed (`int`, *optional*, defaults to `0`):
            Seed.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        max_tokens: int,
        *,
        rows_a_pair: int = 2,
        max_pairs: int | None = None,
        num_processes: int = 1,
        seed: int = 0,
    ):
        self.lengths, self.seed, self.epoch = lengths, seed, 0
        self._windows = _windows(-np.sort(-lengths), rows_a_pair, max_tokens, max_pairs)
        _even_out(self._windows, num_processes)

    def set_epoch(self, epoch: int) -> None:
        """Draw the batches of this epoch from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(map(len, self._windows))

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        drawn = rng.permutation(len(self.lengths))
        order = drawn[np.argsort(-self.lengths[drawn], kind="stable")]
        batches, start = [], 0
        for sizes in self._windows:
            rows = rng.permutation(order[start : start + sum(sizes)])
            start += len(rows)
            batches += [batch.tolist() for batch in np.split(rows, np.cumsum(sizes)[:-1])]
        yield from (batches[place] for place in rng.permutation(len(batches)))


def _windows(lengths: NDArray[np.int64], rows_a_pair: int, max_tokens: int, max_pairs: int | None) -> list[list[int]]:
    """Sizes of the batches of each window, for lengths in descending order."""
    windows: list[list[int]] = []
    start, num = 0, len(lengths)
    while start < num:
        longest = int(lengths[start])
        size = max(1, min(max_tokens // max(1, rows_a_pair * longest), max_pairs or num))
        alike = int(np.searchsorted(-lengths, -_SPREAD * longest, side="right")) - start
        pairs = min(num - start, max(1, alike // size) * size)
        windows.append([size] * (pairs // size) + [pairs % size] * bool(pairs % size))
        start += pairs
    return windows


def _even_out(windows: list[list[int]], multiple: int) -> None:
    """Halve the largest batches until their number is a multiple of this, or all are single pairs."""
    while sum(map(len, windows)) % multiple:
        sizes = max(windows, key=max)
        if (largest := max(sizes)) == 1:
            return
        place = sizes.index(largest)
        sizes[place : place + 1] = [largest - largest // 2, largest // 2]


def check_budget(lengths: NDArray[np.int64], rows: int, max_tokens: int) -> None:
    """Raise [`ConfigError`] if the longest pair alone is over the budget."""
    longest = rows * int(lengths.max(initial=0))
    if longest > max_tokens:
        raise ConfigError(
            f"The longest pair takes {longest} tokens ({rows} row{'s' * (rows > 1)}, padding included), more than "
            f"max_tokens_per_batch={max_tokens}. Raise it, or lower `max_length`."
        )


# Options of the Trainer whose names are `dataloader_<name>`; older versions have not all of them.
_LOADER_OPTIONS = ("num_workers", "pin_memory", "prefetch_factor", "multiprocessing_context", "in_order", "persistent_workers")


def batched_loader(dataset: Any, batches: BatchSampler, collator: Callable[..., Any], args: Any) -> DataLoader:
    """A data loader with the options of the Trainer, for training batches of unequal size, which its own cannot make."""
    names = [name for name in _LOADER_OPTIONS if hasattr(args, f"dataloader_{name}")]
    options: dict[str, Any] = {name: getattr(args, f"dataloader_{name}") for name in names}
    options["worker_init_fn"] = partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collator, **options)


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
