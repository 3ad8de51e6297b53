"""Whether pairs that a model is evaluated on were trained on, too: by what they say, not by where they come from."""

from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from trl_pafo.data.arrow import Rows, column
from trl_pafo.data.history import content_keys

_TEXTS = ("prompt", "chosen", "rejected")
_TOKENS = ("chosen_ids", "rejected_ids")


def pairs_in_common(rows: Any, train: Any) -> int | None:
    """How many of the pairs stand in the training data: the same prompt and the same two responses, whoever chose between them.

    Args:
        rows ([`~datasets.Dataset`]):
            Preference pairs, as texts, messages or token ids.
        train ([`~datasets.Dataset`]):
            What was trained on.

    Returns:
        `int`, or `None` where it cannot be known: either is a stream or missing, or they have no columns in common.
    """
    if not isinstance(rows, Dataset) or not isinstance(train, Dataset):
        return None
    if rows is train or rows._fingerprint == train._fingerprint:
        return len(rows)
    both = set(rows.column_names) & set(train.column_names)
    names = next((kind for kind in (_TEXTS, _TEXTS[1:], _TOKENS) if set(kind) <= both), None)
    if names is None or ("prompt" in rows.column_names) != ("prompt" in train.column_names):
        names = _TOKENS if set(_TOKENS) <= both else None
    if names is None:
        return None
    looked_for = set(_pairs(rows, names))
    seen = {pair for pair in _pairs(train, names) if pair in looked_for}
    return sum(pair in seen for pair in _pairs(rows, names))


def _pairs(rows: Dataset, names: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """The prompt, where there is one, and the two responses in an order that does not depend on which was chosen."""
    for table in Rows(rows, names):
        columns = [column(table, name) for name in names]
        values = [[tuple(ids) for ids in c.to_pylist()] if names == _TOKENS else content_keys(c) for c in columns]
        for *prompt, chosen, rejected in zip(*values, strict=True):
            yield (*prompt, *sorted((chosen, rejected)))
