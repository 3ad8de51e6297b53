"""A user's past pairs into the prompt.

The history is rendered by the tokenizer's chat template, which takes it as a variable. So whatever applies the template
(TRL, `transformers` pipelines, vLLM) serves a model with history right: pass `history=[...]` among the
`chat_template_kwargs`, newest pair first.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_pafo.columns import Rows, column, filled, is_list, is_list_of, is_text, lengths_of, list_array, map_tables
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.options import HISTORY_FIELDS

_ROLES = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
_DESC = "Rendering histories"

_MARK = "{#- trl-pafo: takes `history`, newest pair first -#}"

# Text of a field that is a string or a list of messages.
_TEXT = (
    "{%- macro pafo_text(value) -%}{%- if value is string -%}{{ value }}{%- else -%}"
    "{%- for message in value -%}{{ message.content }}{%- if not loop.last -%}{{ '\\n' }}{%- endif -%}{%- endfor -%}"
    "{%- endif -%}{%- endmacro -%}"
)
_ENTRY = (
    "{%- if entry.prompt -%}{{ 'Asked: ' + pafo_text(entry.prompt) + '\\n' }}{%- endif -%}"
    "{%- if entry.chosen -%}{{ 'Liked: ' + pafo_text(entry.chosen) + '\\n' }}{%- endif -%}"
    "{%- if entry.rejected -%}{{ 'Disliked: ' + pafo_text(entry.rejected) + '\\n' }}{%- endif -%}"
)

# For tokenizers with a template of their own: the history goes in front of the first message, whatever its role, so that
# templates that refuse a system turn, or add one themselves, work too.
_HISTORY_PREFIX = (
    _MARK
    + _TEXT
    + "{%- if history is defined and history -%}{%- set pafo = namespace(history='') -%}"
    + "{%- for entry in history -%}{%- set pafo_entry -%}"
    + _ENTRY
    + "{%- endset -%}{%- set pafo.history = pafo.history + pafo_entry -%}{%- endfor -%}"
    + "{%- set messages = [{'role': messages[0]['role'], 'content': pafo.history + 'Asked: ' + messages[0]['content']}]"
    + " + messages[1:] -%}{%- endif -%}"
)

# For tokenizers without one: [CLS] text [SEP] text [SEP] for encoders, bos text eos text eos for decoders.
_PLAIN_TEMPLATE = (
    _MARK
    + _TEXT
    + "{%- set pafo_end = sep_token or eos_token or '\\n' -%}{{- bos_token or cls_token or '' -}}"
    + "{%- for entry in history or [] -%}"
    + "{%- for value in [entry.prompt, entry.chosen, entry.rejected] if value -%}{{- pafo_text(value) + pafo_end -}}"
    + "{%- endfor -%}{%- endfor -%}"
    + "{%- for message in messages -%}{{- pafo_text(message.content) + pafo_end -}}{%- endfor -%}"
)


def add_history_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make the chat template of `tokenizer` take the variable `history`; a tokenizer without a template gets one.

    The template is changed in place and is saved with the tokenizer. A template that names `history` already is kept.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        raise DataError(
            "The tokenizer has several chat templates; set `tokenizer.chat_template` to the one that the reward model shall use."
        )
    if template is None:
        tokenizer.chat_template = _PLAIN_TEMPLATE
    elif not _names_history(template):
        tokenizer.chat_template = _HISTORY_PREFIX + template
    return tokenizer


def _names_history(template: str) -> bool:
    # As a variable: many a template speaks of "the chat history" in a comment or in its default system prompt.
    return any(kind == "name" and value == "history" for _, kind, value in jinja2.Environment().lex(template))


@lru_cache(maxsize=1)
def _entry_template() -> jinja2.Template:
    return jinja2.Environment(autoescape=False, keep_trailing_newline=True).from_string(_TEXT + _ENTRY)


def _entry_text(entry: dict[str, Any]) -> str:
    return _entry_template().render(entry=entry)


_SETTINGS = "trl_pafo_history"

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

    def remember(self) -> None:
        """Write the settings into the tokenizer, which is saved with the model, so that it is served as it was trained."""
        settings = {"num_history": self.num_history, "max_tokens": self.max_tokens, "fields": self.fields}
        self.tokenizer.init_kwargs[_SETTINGS] = settings

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, **overrides: Any) -> "HistoryCutter":
        """The cutter whose settings the tokenizer remembers; overrides that are not `None` take precedence."""
        settings = dict(tokenizer.init_kwargs.get(_SETTINGS) or {})
        settings |= {name: value for name, value in overrides.items() if value is not None}
        return cls(tokenizer, **settings)

    def __call__(self, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The newest pairs of a history (newest first) that fit.

        The first pair that does not fit ends the history, so that what is kept are always the newest ones. If even the
        newest does not fit, its texts are shortened at their ends, alike, so that no user is left without a history.
        """
        kept = [{name: entry[name] for name in self.fields} for entry in history[: self.num_history]]
        if self.max_tokens is None:
            return kept
        total = 0
        for position, entry in enumerate(kept):
            total += self._length(entry)
            if total > self.max_tokens:
                return kept[:position] if position else [self._shorten(entry)]
        return kept

    def cut_all(self, histories: Sequence[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        """[`__call__`] for each of many histories; faster, since their tokens are counted together."""
        if self.max_tokens is not None:
            if len(self._lengths) > _REMEMBERED:
                self._lengths.clear()
            left = [(history[: self.num_history], 0) for history in histories]
            for place in range(max((len(history) for history, _ in left), default=0)):
                left = [(history, total) for history, total in left if len(history) > place and total <= self.max_tokens]
                texts = [_entry_text({name: history[place][name] for name in self.fields}) for history, _ in left]
                self._count(texts)
                left = [(history, total + self._lengths[text]) for (history, total), text in zip(left, texts, strict=True)]
        return [self(history) for history in histories]

    def _count(self, texts: list[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._lengths]
        if new:
            ids = self.tokenizer(new, add_special_tokens=False)["input_ids"]
            self._lengths.update(zip(new, map(len, ids), strict=True))

    def _length(self, entry: dict[str, Any]) -> int:
        text = _entry_text(entry)
        if text not in self._lengths:
            self._lengths[text] = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._lengths[text]

    def _shorten(self, entry: dict[str, Any]) -> dict[str, Any]:
        assert self.max_tokens is not None
        texts = {name: content_text(value) for name, value in entry.items()}
        longest = max(map(len, texts.values()))
        share = self.max_tokens / self._length(entry)
        while True:
            short = {name: _beginning(text, share) for name, text in texts.items()}
            if self._length(short) <= self.max_tokens:
                return short
            if share * longest < 1:  # one character each
                break
            share *= 0.9
        raise ConfigError(f"history_max_tokens={self.max_tokens} is too small for a single past pair. Raise it.")


def _beginning(text: str, share: float) -> str:
    """About this share of a text, up to the end of a word; within one where it has no earlier end, as in Chinese."""
    cut = text[: int(share * len(text))]
    if len(cut) < len(text) and not text[len(cut)].isspace():
        cut = cut[: max((i for i, c in enumerate(cut) if c.isspace()), default=len(cut))]
    return cut.rstrip() or text[:1]


def content_text(value: str | list[dict[str, str]]) -> str:
    """A standard text as it is; the contents of messages, joined."""
    return value if isinstance(value, str) else "\n".join(message["content"] for message in value)


def content_key(value: str | list[dict[str, str]]) -> str:
    """A prompt as something that can be compared: text, or messages as text. A text and its one message are the same."""
    return value if isinstance(value, str) else _key_of([(m["role"], m["content"]) for m in value])


def _key_of(messages: list[tuple[str, str]]) -> str:
    return messages[0][1] if len(messages) == 1 else repr(messages)


def content_texts(values: pa.Array) -> list[str]:
    """[`content_text`] of each value of a column."""
    if not is_list_of(values.type, ["content"]) or values.null_count:
        return values.to_pylist() if is_text(values.type) else [content_text(value) for value in values.to_pylist()]
    contents = iter(pc.struct_field(pc.list_flatten(values), "content").to_pylist())
    return ["\n".join(islice(contents, length)) for length in lengths_of(values).tolist()]


def content_keys(values: pa.Array) -> list[str]:
    """[`content_key`] of each value of a column."""
    if not is_list_of(values.type, ["role", "content"]) or values.null_count:
        return values.to_pylist() if is_text(values.type) else [content_key(value) for value in values.to_pylist()]
    messages = pc.list_flatten(values)
    told = zip(*(pc.struct_field(messages, name).to_pylist() for name in ("role", "content")), strict=True)
    return [_key_of(list(islice(told, length))) for length in lengths_of(values).tolist()]


def past_prompts(history: pa.Array) -> pa.Array:
    """The prompts of all past pairs of a column of histories, one after the other."""
    entries = pc.list_flatten(history)
    if pa.types.is_null(entries.type):  # all are empty
        return pa.array([], pa.string())
    if not pa.types.is_struct(entries.type) or entries.type.get_field_index("prompt") < 0:
        raise DataError(f"A `history` must be a list of past pairs with {', '.join(HISTORY_FIELDS)}, got {history.type}.")
    return pc.struct_field(entries, "prompt")


def as_messages(value: str | list[dict[str, str]], role: str) -> list[dict[str, str]]:
    """A standard text as one message; messages as they are."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def render_history(
    dataset: Dataset, cutter: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], num_proc: int | None = None
) -> Dataset:
    """Turn the `history` column into `chat_template_kwargs`, the column that TRL hands to the chat template.

    Standard (text) rows become conversational, since only those pass through the template. Needs the explicit-prompt
    form (`prompt`, `chosen`, `rejected`). The `history` column is dropped: what the model sees stands in
    `chat_template_kwargs`.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `prompt`, `chosen`, `rejected`, `history`.
        cutter (`Callable`):
            What of a history is shown, see [`HistoryCutter`].
        num_proc (`int`, *optional*):
            Number of processes.
    """
    if (
        isinstance(cutter, HistoryCutter)
        and cutter.max_tokens is None
        and is_list(dataset.data.table.schema.field("history").type)
    ):
        # Without a budget there is nothing to count: texts stay in Arrow.
        build = partial(_render_table, num_history=cutter.num_history, fields=tuple(cutter.fields))
        return map_tables(dataset, build, num_proc=num_proc, desc=_DESC)
    cut_all = (
        cutter.cut_all if isinstance(cutter, HistoryCutter) else lambda histories: [cutter(history) for history in histories]
    )

    def render(rows: Any) -> dict[str, list[Any]]:
        kwargs = rows["chat_template_kwargs"] if "chat_template_kwargs" in rows else [None] * len(rows["history"])
        cut = cut_all(rows["history"])
        return {
            **{name: [as_messages(value, role) for value in rows[name]] for name, role in _ROLES.items()},
            "chat_template_kwargs": [{**(old or {}), "history": new} for old, new in zip(kwargs, cut, strict=True)],
        }

    return dataset.map(render, batched=True, remove_columns=["history"], num_proc=num_proc, desc=_DESC)


def _render_table(rows: pa.Table, num_history: int | None, fields: Sequence[str]) -> pa.Table:
    for name, role in _ROLES.items():
        place = rows.column_names.index(name)
        rows = rows.set_column(place, name, _as_messages(column(rows, name), role))
    history = _cut_history(column(rows, "history"), num_history, fields)
    return _with_kwargs(rows.drop_columns(["history"]), history)


def _with_kwargs(rows: pa.Table, history: pa.Array) -> pa.Table:
    """The rows with a history among the variables of the chat template, beside those that they have."""
    name = "chat_template_kwargs"
    there = name in rows.column_names
    old = column(rows, name) if there else None
    kept = [field.name for field in old.type] if old is not None and pa.types.is_struct(old.type) else []
    variables = {key: pc.struct_field(old, key) for key in kept} | {"history": history}
    new = pa.StructArray.from_arrays(list(variables.values()), list(variables))
    return rows.set_column(rows.column_names.index(name), name, new) if there else rows.append_column(name, new)


def _as_messages(values: pa.Array, role: str) -> pa.Array:
    if not is_text(values.type):
        return values
    messages = pa.StructArray.from_arrays([pa.repeat(role, len(values)), values], ["role", "content"])
    lists = list_array(np.ones(len(values), np.int64), messages)
    return pc.if_else(values.is_valid(), lists, pa.scalar(None, lists.type)) if values.null_count else lists


def _cut_history(history: pa.Array, num_history: int | None, fields: Sequence[str]) -> pa.Array:
    if not pa.types.is_struct(history.type.value_type):  # all are empty
        return history
    lengths = lengths_of(history)
    kept = lengths if num_history is None else np.minimum(lengths, num_history)
    entries = pc.list_flatten(history)
    if kept.sum() < len(entries):
        firsts = np.cumsum(lengths) - lengths
        places = np.arange(kept.sum()) - np.repeat(np.cumsum(kept) - kept, kept)
        entries = entries.take(pa.array(np.repeat(firsts, kept) + places))
    return list_array(kept, pa.StructArray.from_arrays([pc.struct_field(entries, name) for name in fields], list(fields)))


def without_history(rows: Dataset) -> Dataset:
    """The same rows with an empty history: what a reward model that is not personalised sees."""

    def empty(table: pa.Table) -> pa.Table:
        history = pc.struct_field(column(table, "chat_template_kwargs"), "history")
        return _with_kwargs(table, list_array(np.zeros(len(table), np.int64), pc.list_flatten(history).slice(0, 0)))

    return map_tables(rows, empty, desc="Leaving out histories")


def is_rendered(dataset: Dataset) -> bool:
    """Whether the rows bring their history in `chat_template_kwargs`, as those of `trl-pafo prepare` do."""
    feature = dataset.features.get("chat_template_kwargs") if dataset.features else None
    return isinstance(feature, dict) and "history" in feature


def remember_rendering(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the tokenizer remember how the rows were rendered, see [`HistoryCutter.remember`]."""
    shown: set[str] = set()
    longest = 0
    for rows in Rows(dataset, ["chat_template_kwargs"]):
        history = pc.struct_field(column(rows, "chat_template_kwargs"), "history")
        longest = max(longest, int(lengths_of(history).max(initial=0)))
        entries = pc.list_flatten(history)
        for name in HISTORY_FIELDS if pa.types.is_struct(entries.type) else ():
            if entries.type.get_field_index(name) >= 0 and len(entries) and filled(pc.struct_field(entries, name)).any():
                shown.add(name)
    HistoryCutter(tokenizer, longest, fields=[name for name in HISTORY_FIELDS if name in shown] or HISTORY_FIELDS).remember()
