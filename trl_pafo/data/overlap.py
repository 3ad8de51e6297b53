"""What of a pair must not stand in its own history: its prompt, or, where all pairs have one prompt, its two responses."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from trl_pafo.data.messages import content_key
from trl_pafo.data.rows import read_rows


def telling_fields(*datasets: Dataset) -> tuple[str, ...]:
    """The fields that tell pairs apart: the prompt; chosen and rejected where all pairs have the same one, such as a topic."""
    prompts = (content_key(row["prompt"]) for rows in datasets for row in read_rows(rows, ["prompt"]))
    first = next(prompts, None)
    return ("prompt",) if any(prompt != first for prompt in prompts) else ("chosen", "rejected")


def pair_texts(pair: Mapping[str, Any], fields: tuple[str, ...]) -> tuple[str, ...]:
    """The texts of a pair that no pair of its history may have, in an order that does not depend on which one was chosen."""
    return tuple(sorted(content_key(pair[name]) for name in fields))


class PairNumbers:
    """
    The same as numbers, so that memory does not hold every text once for each row; `fields` are as [`telling_fields`] gives them.
    """

    def __init__(self, fields: tuple[str, ...]):
        self.fields = fields
        self._number_of: dict[str, int] = {}

    def __call__(self, pair: Mapping[str, Any]) -> tuple[int, ...]:
        return tuple(self._number_of.setdefault(text, len(self._number_of)) for text in pair_texts(pair, self.fields))


class PromptFolds:
    """
    Parts of the prompts of rows (or of their pairs of responses, see [`telling_fields`]), as even as they go, drawn by a seed.
    """

    def __init__(self, rows: Dataset, num_folds: int, seed: int):
        self._fields = telling_fields(rows)
        different = sorted({pair_texts(row, self._fields) for row in read_rows(rows, self._fields)})
        random.Random(seed).shuffle(different)
        self._fold_of = {texts: place % num_folds for place, texts in enumerate(different)}

    def of(self, rows: Dataset) -> NDArray[np.int64]:
        """The fold of each row, -1 for a prompt that is in none, of shape `(num_rows,)`."""
        texts = (pair_texts(row, self._fields) for row in read_rows(rows, self._fields))
        return np.array([self._fold_of.get(own, -1) for own in texts], dtype=np.int64)
