"""A user's past pairs, cut to what a model is shown and rendered into the prompt by the chat template (`template.py`)."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_pafo.data import HISTORY_FIELDS
from trl_pafo.data.arrow import Rows, column, filled, is_list_of, is_text, lengths_of, list_array, map_tables, to_python
from trl_pafo.data.messages import _key_of, content_key, content_text
from trl_pafo.errors import ConfigError, DataError

_ROLES = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
_KWARGS = "chat_template_kwargs"
_DESC = "Rendering histories"


def _entry_text(entry: dict[str, str]) -> str:
    """A past pair as the template writes it."""
    return "".join(f"{label}{entry[name]}\n" for name, label in _LABELS.items() if entry.get(name))


_LABELS = {"prompt": "Asked: ", "chosen": "Liked: ", "rejected": "Disliked: "}


_RECORD = "trl_pafo_inputs"

# Texts whose number of tokens a cutter remembers: a pair stands in the histories of rows that are near each other.
_REMEMBERED = 50_000


def check_history_options(num_history: int | None, max_tokens: int | None, fields: Sequence[str]) -> None:
    """Raise [`ConfigError`] where an option of the history has a value that cannot be used."""
    if num_history is not None and num_history < 0:
        raise ConfigError(f"`num_history` must be at least 0 (or None for all), got {num_history}.")
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"`history_max_tokens` must be at least 1 (or None), got {max_tokens}.")
    if not fields or set(fields) - set(HISTORY_FIELDS):
        raise ConfigError(f"`history_fields` must be some of {', '.join(HISTORY_FIELDS)}, got {fields}.")


class HistoryCutter:
    """
    Cuts histories to a number of pairs, to the fields that are shown, and to a token budget.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Counts the tokens.
        num_history (`int`, *optional*):
            At most this many pairs, the newest; `None` for no limit.
        max_tokens (`int`, *optional*):
            Token budget of the rendered pairs together; `None` for no limit.
        fields (`Sequence[str]`, *optional*):
            Which of `prompt`, `chosen`, `rejected` of a past pair are shown.

    Raises:
        ConfigError: If an option has a value that cannot be used.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        num_history: int | None = None,
        max_tokens: int | None = None,
        fields: Sequence[str] = HISTORY_FIELDS,
    ):
        check_history_options(num_history, max_tokens, fields)
        self.tokenizer = tokenizer
        self.num_history = num_history
        self.max_tokens = max_tokens
        self.fields = [name for name in HISTORY_FIELDS if name in fields]
        self._lengths: dict[str, int] = {}

    def remember(self, inputs: str = "messages") -> None:
        """Write into the tokenizer, which is saved with the model, what the model is trained with, so that it is served alike.

        Args:
            inputs (`str`, *optional*, defaults to `"messages"`):
                `"messages"`, which pass through the chat template, or `"text"`. `num_history=0` says that no history is shown.
        """
        settings = {"num_history": self.num_history, "max_tokens": self.max_tokens, "fields": self.fields}
        self.tokenizer.init_kwargs[_RECORD] = {"inputs": inputs, **settings}

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, **overrides: Any) -> "HistoryCutter":
        """The cutter whose settings the tokenizer remembers; overrides that are not `None` take precedence."""
        settings = {name: value for name, value in (remembered(tokenizer) or {}).items() if name != "inputs"}
        settings |= {name: value for name, value in overrides.items() if value is not None}
        return cls(tokenizer, **settings)

    def __call__(self, history: list[dict[str, Any]] | None) -> list[dict[str, str]]:
        """The newest pairs of a history (newest first) that fit, as texts; those of no history are none.

        The first pair that does not fit ends the history, so that what is kept are always the newest ones. If even the
        newest does not fit, its texts are shortened at their ends, alike, so that no user is left without a history.

        Raises:
            DataError: If it is no list of past pairs with texts, or messages, in the fields that are shown.
        """
        return self._fit(_newest(history, self.num_history, self.fields))

    def _fit(self, kept: list[dict[str, str]]) -> list[dict[str, str]]:
        if self.max_tokens is None:
            return kept
        total = 0
        for position, entry in enumerate(kept):
            total += self._length(entry)
            if total > self.max_tokens:
                return kept[:position] if position else [self._shorten(entry)]
        return kept

    def cut_all(self, histories: Sequence[list[dict[str, Any]] | None]) -> list[list[dict[str, str]]]:
        """[`__call__`] for each of many histories; faster, since their tokens are counted together."""
        texts = [_newest(history, self.num_history, self.fields) for history in histories]
        if self.max_tokens is None:
            return texts
        if len(self._lengths) > _REMEMBERED:
            self._lengths.clear()
        left = [(history, 0) for history in texts]
        for place in range(max(map(len, texts), default=0)):
            left = [(history, total) for history, total in left if len(history) > place and total <= self.max_tokens]
            entries = [_entry_text(history[place]) for history, _ in left]
            self._count(entries)
            left = [(history, total + self._lengths[text]) for (history, total), text in zip(left, entries, strict=True)]
        return [self._fit(history) for history in texts]

    def _count(self, texts: list[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._lengths]
        if new:
            ids = self.tokenizer(new, add_special_tokens=False)["input_ids"]
            self._lengths.update(zip(new, map(len, ids), strict=True))

    def _length(self, entry: dict[str, str]) -> int:
        text = _entry_text(entry)
        if text not in self._lengths:
            self._lengths[text] = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._lengths[text]

    def _shorten(self, entry: dict[str, str]) -> dict[str, str]:
        assert self.max_tokens is not None
        longest = max(map(len, entry.values()))
        share = self.max_tokens / self._length(entry)
        while True:
            short = {name: _beginning(text, share) for name, text in entry.items()}
            if self._length(short) <= self.max_tokens:
                return short
            if share * longest < 1:  # one character each
                break
            share *= 0.9
        raise ConfigError(f"history_max_tokens={self.max_tokens} is too small for a single past pair. Raise it.")


def _newest(history: Any, num_history: int | None, fields: Sequence[str]) -> list[dict[str, str]]:
    """The newest pairs of a history, as texts."""
    newest = history[:num_history] if isinstance(history, list) else history
    if problem := history_problem(newest, fields):
        raise DataError(f"{problem}.")
    return [{name: content_text(entry[name]) for name in fields} for entry in newest or []]


def _beginning(text: str, share: float) -> str:
    """About this share of a text, up to the end of a word; within one where it has no earlier end, as in Chinese."""
    cut = text[: int(share * len(text))]
    if len(cut) < len(text) and not text[len(cut)].isspace():
        cut = cut[: max((i for i, c in enumerate(cut) if c.isspace()), default=len(cut))]
    return cut.rstrip() or text[:1]


def remembered(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """What [`HistoryCutter.remember`] wrote: `inputs`, `num_history`, `max_tokens`, `fields`; `None` where nothing did.

    Raises:
        ConfigError: If it is not readable.
    """
    record = tokenizer.init_kwargs.get(_RECORD)
    if record is None:
        return None
    if not isinstance(record, dict) or set(record) != {"inputs", "num_history", "max_tokens", "fields"}:
        raise ConfigError(f"`{_RECORD}` of the tokenizer is not as trl-pafo writes it: {record!r:.200}. Train the model again.")
    return record


def content_texts(values: pa.Array) -> list[str]:
    """[`content_text`] of each value of a column."""
    contents = _whole_contents(values)
    if contents is None:
        return values.to_pylist() if is_text(values.type) else [content_text(value) for value in to_python(values)]
    rest = iter(contents)
    return ["\n".join(islice(rest, length)) for length in lengths_of(values).tolist()]


def content_keys(values: pa.Array) -> list[str]:
    """[`content_key`] of each value of a column."""
    contents = _whole_contents(values)
    if contents is None:
        return values.to_pylist() if is_text(values.type) else [content_key(value) for value in to_python(values)]
    told = zip(pc.struct_field(pc.list_flatten(values), "role").to_pylist(), contents, strict=True)
    return [_key_of(list(islice(told, length))) for length in lengths_of(values).tolist()]


def _whole_contents(values: pa.Array) -> list[str] | None:
    """The contents of all messages of a column where they are their whole texts; else the messages have to be looked at."""
    if not is_list_of(values.type, ["role", "content"]) or values.null_count:
        return None
    messages = pc.list_flatten(values)
    contents = pc.struct_field(messages, "content")
    if not is_text(contents.type) or contents.null_count:
        return None
    if messages.type.get_field_index("tool_calls") >= 0 and pc.struct_field(messages, "tool_calls").is_valid().true_count:
        return None
    return contents.to_pylist()


def history_problem(history: Any, fields: Sequence[str] = HISTORY_FIELDS) -> str | None:
    """What keeps a history from being shown; `None` where nothing does. No history is an empty one."""
    if history is None:
        return None
    if not isinstance(history, list):
        return f"a history must be a list of past pairs with {', '.join(HISTORY_FIELDS)}, newest first, got {history!r:.200}"
    for entry in history:
        if not isinstance(entry, dict):
            return f"an entry of the history must be a past pair with {', '.join(HISTORY_FIELDS)}, got {entry!r:.200}"
        missing = [name for name in fields if not entry.get(name)]
        if missing:
            return f"an entry of the history lacks {', '.join(missing)}"
        for name in HISTORY_FIELDS:
            value = entry.get(name)
            if not (value is None or isinstance(value, str | list)):
                return f"`{name}` of an entry of the history must be a text or a list of messages, got {value!r:.200}"
            try:
                if name in fields and not content_text(value).strip():  # type: ignore[arg-type]
                    return f"`{name}` of an entry of the history is empty"
            except DataError as error:
                return f"`{name}` of an entry of the history: {error}"
    return None


def past_prompts(history: pa.Array) -> pa.Array:
    """The prompts of all past pairs of a column of histories, one after the other."""
    entries = pc.list_flatten(history)
    if pa.types.is_null(entries.type):  # all are empty
        return pa.array([], pa.string())
    if not pa.types.is_struct(entries.type) or entries.type.get_field_index("prompt") < 0:
        raise DataError(f"A `history` must be a list of past pairs with {', '.join(HISTORY_FIELDS)}, got {history.type}.")
    return pc.struct_field(entries, "prompt")


def render_history(dataset: Dataset, cutter: HistoryCutter, num_proc: int | None = None) -> Dataset:
    """Turn the `history` column into `chat_template_kwargs`, the column that TRL hands to the chat template.

    Standard (text) rows become conversational, since only those pass through the template; past pairs become texts. The
    `history` column is dropped: what the model sees stands in `chat_template_kwargs`. Rows whose history stands there already
    have it cut there.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `prompt`, `chosen`, `rejected`, `history`.
        cutter ([`HistoryCutter`]):
            What of a history is shown.
        num_proc (`int`, *optional*):
            Number of processes.
    """
    # Without a budget there is nothing to count: texts stay in Arrow.
    cut_all = None if cutter.max_tokens is None else cutter.cut_all
    build = partial(_render_table, num_history=cutter.num_history, fields=tuple(cutter.fields), cut_all=cut_all)
    return map_tables(dataset, build, num_proc=num_proc, desc=_DESC)


def rows_as_messages(dataset: Dataset, num_proc: int | None = None) -> Dataset:
    """Standard (text) rows as conversational ones, each text as one message."""
    schema = dataset.data.table.schema
    if not any(is_text(schema.field(name).type) for name in _ROLES if name in dataset.column_names):
        return dataset
    return map_tables(dataset, _table_as_messages, num_proc=num_proc, desc="Texts as messages")


def _table_as_messages(rows: pa.Table) -> pa.Table:
    for name, role in _ROLES.items():
        if name in rows.column_names:
            rows = rows.set_column(rows.column_names.index(name), name, _as_messages(column(rows, name), role))
    return rows


def _render_table(
    rows: pa.Table, num_history: int | None, fields: Sequence[str], cut_all: Callable[[list[Any]], list[Any]] | None
) -> pa.Table:
    history = history_column(rows)
    if cut_all is None and is_list_of(history.type, fields):
        cut = _cut_history(history, num_history, fields)
    else:
        histories = to_python(history)
        kept = [_newest(past, num_history, fields) for past in histories] if cut_all is None else cut_all(histories)
        cut = pa.array(kept, pa.list_(pa.struct([pa.field(name, pa.string()) for name in fields])))
    rows = _table_as_messages(rows)
    return _with_kwargs(rows.drop_columns(["history"]) if "history" in rows.column_names else rows, cut)


def history_column(rows: pa.Table) -> pa.Array:
    """The histories of rows: those of the column, or, without it, those that are rendered already."""
    if "history" in rows.column_names:
        return column(rows, "history")
    return pc.struct_field(column(rows, _KWARGS), "history")


def _with_kwargs(rows: pa.Table, history: pa.Array) -> pa.Table:
    """The rows with a history among the variables of the chat template, beside those that they have."""
    there = _KWARGS in rows.column_names
    old = column(rows, _KWARGS) if there else None
    kept = [field.name for field in old.type] if old is not None and pa.types.is_struct(old.type) else []
    variables = {key: pc.struct_field(old, key) for key in kept} | {"history": history}
    new = pa.StructArray.from_arrays(list(variables.values()), list(variables))
    return rows.set_column(rows.column_names.index(_KWARGS), _KWARGS, new) if there else rows.append_column(_KWARGS, new)


def _as_messages(values: pa.Array, role: str) -> pa.Array:
    if not is_text(values.type):
        return values
    messages = pa.StructArray.from_arrays([pa.repeat(role, len(values)), values], ["role", "content"])
    lists = list_array(np.ones(len(values), np.int64), messages)
    return pc.if_else(values.is_valid(), lists, pa.scalar(None, lists.type)) if values.null_count else lists


def _cut_history(history: pa.Array, num_history: int | None, fields: Sequence[str]) -> pa.Array:
    lengths = lengths_of(history)
    kept = lengths if num_history is None else np.minimum(lengths, num_history)
    entries = pc.list_flatten(history)
    if kept.sum() < len(entries):
        firsts = np.cumsum(lengths) - lengths
        places = np.arange(kept.sum()) - np.repeat(np.cumsum(kept) - kept, kept)
        entries = entries.take(pa.array(np.repeat(firsts, kept) + places))
    values = [pc.struct_field(entries, name) for name in fields]
    texts = [value if is_text(value.type) else pa.array(content_texts(value), pa.string()) for value in values]
    return list_array(kept, pa.StructArray.from_arrays(texts, list(fields)))


def without_history(rows: Dataset) -> Dataset:
    """The same rows with an empty history: what a reward model that is not personalized sees."""

    def empty(table: pa.Table) -> pa.Table:
        history = pc.struct_field(column(table, _KWARGS), "history")
        return _with_kwargs(table, list_array(np.zeros(len(table), np.int64), pc.list_flatten(history).slice(0, 0)))

    return map_tables(rows, empty, desc="Leaving out histories")


def is_rendered(dataset: Dataset) -> bool:
    """Whether the rows bring their history in `chat_template_kwargs`, as those of `trl-pafo prepare` do."""
    kind = dataset.data.table.schema.field(_KWARGS).type if _KWARGS in dataset.column_names else None
    if kind is not None and isinstance(kind, pa.JsonType):
        raise DataError(f"`{_KWARGS}` holds values of several types under one name. Give each variable one type in all rows.")
    return kind is not None and pa.types.is_struct(kind) and kind.get_field_index("history") >= 0


def remember_rendering(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the tokenizer remember how the rows were rendered, see [`HistoryCutter.remember`]."""
    shown: set[str] = set()
    longest = 0
    for rows in Rows(dataset, [_KWARGS]):
        history = pc.struct_field(column(rows, _KWARGS), "history")
        longest = max(longest, int(lengths_of(history).max(initial=0)))
        entries = pc.list_flatten(history)
        for name in HISTORY_FIELDS if pa.types.is_struct(entries.type) else ():
            if entries.type.get_field_index(name) >= 0 and len(entries) and filled(pc.struct_field(entries, name)).any():
                shown.add(name)
    HistoryCutter(tokenizer, longest, fields=[name for name in HISTORY_FIELDS if name in shown] or HISTORY_FIELDS).remember()
