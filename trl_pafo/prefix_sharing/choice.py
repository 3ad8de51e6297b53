"""Whether a run shares prefixes: what the option asks for, what the model can, and what the lengths of the pairs promise."""

from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from trl_pafo.errors import ConfigError
from trl_pafo.prefix_sharing.attention import layer_windows
from trl_pafo.prefix_sharing.forward import reward_model
from trl_pafo.prefix_sharing.rows import dataset_lengths, round_up
from trl_pafo.prefix_sharing.support import TESTED_FAMILIES, why_not_shared

MIN_GAIN = 1.1
"""Estimated gain in speed from which on `"auto"` shares: measured gains lie around the estimate (docs/prefix_sharing.md)."""

_MOST_PAIRS = 1024


class SharingChoice(NamedTuple):
    """Whether pairs share rows, and why."""

    share: bool
    reason: str


class Gain(NamedTuple):
    """Two rows a pair over shared rows: how many times the tokens, and how many times the arithmetic."""

    tokens: float
    speed: float


def choose_sharing(
    mode: str,
    model: torch.nn.Module,
    dataset: Any,
    batch_size: int,
    *,
    pad_to_multiple_of: int | None = None,
    reason: str | None = None,
) -> SharingChoice:
    """Decide whether the pairs of a run share rows; the same on every process that sees the same model and dataset.

    The mode is `"off"`; `"on"`, which shares whatever the lengths are; or `"auto"`, which shares where the model's family is among
    the tested ones and a sample of the tokenized pairs promises a gain of at least [`MIN_GAIN`] (a stream has no lengths to look
    at). The reason is why the caller cannot have shared rows.

    Raises:
        ConfigError: With `"on"`, if shared rows would not give the rewards of two rows.
    """
    if mode == "off":
        return SharingChoice(False, "prefix_sharing='off'")
    estimate = "prefix_sharing='on'"
    inner = reward_model(model)
    if mode == "auto" and reason is None and inner is not None:  # what costs least is asked first
        if inner.config.model_type not in TESTED_FAMILIES:
            return SharingChoice(
                False,
                f"models of type {inner.config.model_type!r} are not among those whose gradients are compared in our tests; "
                "prefix_sharing='on' shares if a small model of the type gives equal rewards",
            )
        if not isinstance(dataset, Dataset) or not len(dataset):
            return SharingChoice(False, "the lengths of the pairs are not known; prefix_sharing='on' shares all the same")
        sample = np.random.default_rng(0).permutation(len(dataset))[: max(_MOST_PAIRS, batch_size)]
        gain = estimate_gain(dataset_lengths(dataset.select(sample)), batch_size, inner.config, pad_to_multiple_of)
        estimate = f"one row a pair is estimated to be {gain.speed:.2f} times as fast as two, which have {gain.tokens:.2f} times the tokens"
        if gain.speed < MIN_GAIN:
            return SharingChoice(False, f"{estimate}: below {MIN_GAIN}")
    reason = reason or why_not_shared(model)
    if reason is not None and mode == "on":
        raise ConfigError(
            f"prefix_sharing='on' cannot give the rewards of two rows: {reason}. Set prefix_sharing='auto' or 'off'."
        )
    return SharingChoice(reason is None, reason or estimate)


def estimate_gain(lengths: NDArray[np.int64], batch_size: int, config: Any, pad_to_multiple_of: int | None = None) -> Gain:
    """Gain for batches in the order given, padding included: [`count_work`], with attention weighed. (Not from the paper.)"""
    work = count_work(lengths, batch_size, how_rows_attend(config, lengths), pad_to_multiple_of)
    two, shared = work @ [1.0, attention_weight(config)]
    return Gain(float(work[0, 0] / work[1, 0]), float(two / shared))


def count_work(
    lengths: NDArray[np.int64], batch_size: int, attention: str, pad_to_multiple_of: int | None = None
) -> NDArray[np.float64]:
    """What two rows a pair and shared rows compute, for batches in the order given, padding included. (Not from the paper.)

    Matrices cost the same for each token. Attention costs, with a mask, every token of a row on every other one; without, which two
    rows of equal length need, half of that; with flex_attention, or row by row (`"by_rows"`, [`RowMask`]), only what a token sees.

    The result has the shape `(2, 2)`: two rows, then shared rows; tokens, and queries on keys. The lengths, at least one pair's,
    are of the shape `(num_pairs, 3)` ([`pair_lengths`]).
    """
    work = np.zeros((2, 2))
    for start in range(0, len(lengths), batch_size):
        batch = lengths[start : start + batch_size]
        sequences = batch[:, :1] + batch[:, 1:]
        two = round_up(int(sequences.max()), pad_to_multiple_of)
        shared = round_up(int(batch.sum(axis=1).max()), pad_to_multiple_of)
        needs_mask = attention == "eager" or bool((sequences < two).any())
        seen = np.array([2 * two**2 * (1.0 if needs_mask else 0.5), shared**2]) * len(batch)
        if attention == "flex_attention":
            seen[0] = (sequences**2).sum() / 2
        if attention in ("flex_attention", "by_rows"):
            seen[1] = (sequences[:, 0] ** 2 / 2 + batch[:, 2] * sequences[:, 1]).sum()
        work += np.stack([[2 * two * len(batch), shared * len(batch)], seen], axis=1)
    return work


def attention_weight(config: Any) -> float:
    """Arithmetic of one query on one key, over that of one token in the matrices of a layer: it grows with the row, they do not."""
    hidden = config.hidden_size
    head_size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries = config.num_attention_heads * head_size
    keys = (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * head_size
    experts = getattr(config, "num_experts_per_tok", None) or 1
    width = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", None) or 4 * hidden
    return 4 * queries / (2 * hidden * (2 * queries + 2 * keys + 3 * experts * width))


def how_rows_attend(config: Any, lengths: NDArray[np.int64]) -> str:
    """Implementation of attention that shared rows of these lengths will meet, as [`count_work`] takes it."""
    if config._attn_implementation != "sdpa" or torch.accelerator.is_available():
        return config._attn_implementation
    try:
        windows = layer_windows(config)
    except ConfigError:  # `why_not_shared` says so
        return "sdpa"
    longest = int((lengths[:, 0] + lengths[:, 1:].max(axis=1)).max())
    bite = [window is not None and window < longest for window in (windows.values() if isinstance(windows, dict) else [windows])]
    return "sdpa" if any(bite) else "by_rows"
