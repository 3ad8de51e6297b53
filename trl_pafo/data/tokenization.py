"""Pairs to token ids, exactly those of RewardTrainer: what texts have in common is tokenized once.

A tokenizer first cuts a text at its special tokens and treats each piece alone. So a text is the sum of its pieces, and with a
template that ends each turn by a special token, chosen and rejected share all but their last pieces: prompt and history. Rows of
one user share the texts of the history as well.
"""

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jinja2
import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from trl.data_utils import is_conversational
from trl.trainer.utils import global_then_local_main_first

from trl_pafo.data.messages import without_nones
from trl_pafo.data.rows import read_rows, rows_of_batch
from trl_pafo.errors import DataError

ID_COLUMNS = ("chosen_ids", "rejected_ids")
"""Columns of the token ids of a pair."""

_COLUMNS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs")
_SIDES = ("chosen", "rejected")

# Rows of a batch: the more, the more pieces are found again.
_BATCH = 2000
# Rows that are also tokenized one by one, to see that a tokenizer does what all are taken to do.
_CHECKED = 8

# Arguments of `apply_chat_template` that say how to tokenize, not what to write.
_HOW = {"tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"}
_HOW |= {"sanitize_control_tokens", "tokenizer_kwargs"}


def tokenize_pairs(dataset: Dataset, tokenizer: Any, *, title: str = "", num_proc: int | None = None) -> Dataset:
    """Add the columns `chosen_ids` and `rejected_ids`, which hold what RewardTrainer would put there, to the last token.

    The other columns stay as they are and are not written again. The dataset itself is returned where it is tokenized already or
    holds plain texts, which RewardTrainer tokenizes. `title` names it in the progress bar.
    """
    columns = [name for name in _COLUMNS if name in dataset.column_names]
    if not set(_SIDES) <= set(columns) or {ID_COLUMNS[0], "chosen_input_ids"} & set(dataset.column_names) or not len(dataset):
        return dataset
    chats = dataset.select_columns(columns).with_format(None)
    if not is_conversational(chats[0]) or not isinstance(tokenizer, PreTrainedTokenizerBase):
        return dataset
    what = f"The {title} dataset"
    first = (chats[:_CHECKED], range(min(_CHECKED, len(chats))), tokenizer, what)
    own_template = type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
    variables = chats.features.get("chat_template_kwargs")
    tells_how = bool(isinstance(variables, dict) and _HOW & set(variables))
    is_sum = not own_template and not tells_how and _tokenize(*first, by_pieces=True) == _tokenize(*first, by_pieces=False)
    with global_then_local_main_first():
        ids = chats.map(
            _tokenize,
            batched=True,
            batch_size=_BATCH,
            with_indices=True,
            fn_kwargs={"tokenizer": tokenizer, "what": what, "by_pieces": is_sum},
            remove_columns=columns,
            num_proc=num_proc,
            desc=f"Tokenizing {title} dataset",
        )
    return concatenate_datasets([dataset.with_format(None), ids], axis=1)


def rows_within(dataset: Dataset, max_length: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of the rows of which both sequences have at most `max_length` tokens, one number or those of the rows, of shape
    `(num_rows, 1)`; in their order.
    """
    return np.flatnonzero((sequence_lengths(dataset) <= max_length).all(axis=1))


def tokenize_all(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, what: str) -> Dataset:
    """[`tokenize_pairs`], and plain texts too, row by row."""
    tokenized = tokenize_pairs(dataset, tokenizer, title="training")
    if ID_COLUMNS[0] in tokenized.column_names:
        return tokenized
    rows = [{f"{side}_ids": tokenize_row(tokenizer, row, side, what) for side in _SIDES} for row in read_rows(dataset)]
    return Dataset.from_list(rows)


def sequence_lengths(dataset: Dataset) -> NDArray[np.int64]:
    """Tokens of `chosen_ids` and `rejected_ids`, of shape `(num_pairs, 2)`, counted in Arrow."""
    tables = dataset.select_columns(list(ID_COLUMNS)).with_format("arrow").iter(10_000)
    parts = [np.stack([pc.list_value_length(table[name]).to_numpy() for name in ID_COLUMNS], axis=1) for table in tables]
    return np.concatenate([np.zeros((0, 2), dtype=np.int64), *parts])


def _template_kwargs(row: dict[str, Any]) -> dict[str, Any]:
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else without_nones(tools)
    return {"tools": tools, **without_nones(row.get("chat_template_kwargs") or {})}


def _from_template(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], side: str, place: str, **how: Any) -> Any:
    # Columns have every key that any row has: what a message lacks must not stand in it as None.
    messages = without_nones([*(row.get("prompt") or []), *row[side]])
    try:
        return tokenizer.apply_chat_template(messages, **{**how, **_template_kwargs(row)})
    except (jinja2.TemplateError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise DataError(
            f"{place}, `{side}` (with its prompt): the chat template cannot render it: {error}. Write messages that the template "
            "accepts, or leave the row out."
        ) from error


def tokenize_row(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], side: str, place: str = "A row") -> list[int]:
    """Token ids of one response with its prompt, as RewardTrainer makes them: by the chat template, or as plain text and eos.

    `side` is the column of the response, texts or messages as its optional `prompt`; the row may have `chat_template_kwargs` and
    `tools`. Messages that the template cannot write raise [`DataError`], which names the `place`.
    """
    if isinstance(row[side], str):
        end = tokenizer.eos_token or ""
        response = row[side] if row[side].endswith(end) else row[side] + end
        return tokenizer(text=(row.get("prompt") or "") + response)["input_ids"]
    return _from_template(tokenizer, row, side, place, tokenize=True, return_dict=True)["input_ids"]


def _tokenize(
    batch: dict[str, list[Any]], numbers: Sequence[int], tokenizer: PreTrainedTokenizerBase, what: str, by_pieces: bool
) -> dict[str, list[list[int]]]:
    rows = [(row, f"{what}, row {number}") for number, row in zip(numbers, rows_of_batch(batch), strict=True)]
    if not by_pieces:
        return {f"{side}_ids": [tokenize_row(tokenizer, row, side, place) for row, place in rows] for side in _SIDES}
    texts = [_from_template(tokenizer, row, side, place, tokenize=False) for side in _SIDES for row, place in rows]
    ids = sum_of_pieces(tokenizer, texts)
    return {"chosen_ids": ids[: len(rows)], "rejected_ids": ids[len(rows) :]}


def sum_of_pieces(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts without special tokens around them, each piece between special tokens tokenized once. (Not from the
    paper.)

    A tokenizer that is not fast, or that takes special tokens for text, gets whole texts.
    """
    cut = _cutter(tokenizer)
    place: dict[str, int] = {}
    pieces = [[place.setdefault(piece, len(place)) for piece in cut(text)] for text in texts]
    encoded = tokenizer(list(place), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    ids: Any = encoded["input_ids"]
    return [[token for piece in places for token in ids[piece]] for places in pieces]


def _cutter(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[str]]:
    """Cuts a text in front of each special token, as the tokenizer finds them: the first, and of several there the longest."""
    if not tokenizer.is_fast or getattr(tokenizer, "split_special_tokens", False):
        return lambda text: [text]
    # The others are looked for in normalized text, piece by piece.
    tokens = [token for token in tokenizer.added_tokens_decoder.values() if not token.normalized and token.content]
    # What takes blanks around it, or must stand alone, depends on its neighbors.
    bound = {token.content for token in tokens if token.lstrip or token.rstrip or token.single_word}
    if not tokens:
        return lambda text: [text]
    pattern = re.compile("|".join(re.escape(content) for content in sorted((t.content for t in tokens), key=len, reverse=True)))

    def cut(text: str) -> list[str]:
        if any(content in text for content in bound):
            return [text]
        starts = [match.start() for match in pattern.finditer(text)]
        places = [0, *(start for start in starts if start), len(text)]
        return [text[start:end] for start, end in pairwise(places)]

    return cut
