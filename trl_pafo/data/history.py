"""A user's past pairs, cut to what a model is shown and rendered into the prompt by the chat template (`template.py`)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from trl_pafo.data import HISTORY_FIELDS
from trl_pafo.data.messages import as_messages, content_key, content_text
from trl_pafo.data.rows import read_rows
from trl_pafo.errors import ConfigError, DataError

_ROLES = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
_LABELS = {"prompt": "Asked: ", "chosen": "Liked: ", "rejected": "Disliked: "}
_KWARGS = "chat_template_kwargs"
_RECORD = "trl_pafo_inputs"


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
        """[`cut_all`] for one history."""
        return self.cut_all([history])[0]

    def cut_all(self, histories: Sequence[list[dict[str, Any]] | None]) -> list[list[dict[str, str]]]:
        """The newest pairs that fit, as texts, of each history (newest first); of a history that is missing, none.

        The first pair that does not fit ends the history, so that what is kept are always the newest ones. If even the
        newest does not fit, its texts are shortened at their ends, alike, so that no user is left without a history.

        Raises:
            DataError: If a history is no list of past pairs with texts, or messages, in the fields that are shown.
            ConfigError: If the budget is too small for a single past pair.
        """
        newest = [self._newest(history) for history in histories]
        if self.max_tokens is None:
            return newest
        texts = list({_entry_text(entry) for history in newest for entry in history})
        lengths = dict(zip(texts, self._count(texts), strict=True))
        return [self._within_budget(history, lengths) for history in newest]

    def _newest(self, history: Any) -> list[dict[str, str]]:
        newest = history[: self.num_history] if isinstance(history, list) else history
        if problem := history_problem(newest, self.fields):
            raise DataError(f"{problem}.")
        return [{name: content_text(entry[name]) for name in self.fields} for entry in newest or []]

    def _count(self, texts: list[str]) -> list[int]:
        return list(map(len, self.tokenizer(texts, add_special_tokens=False)["input_ids"])) if texts else []

    def _within_budget(self, newest: list[dict[str, str]], lengths: Mapping[str, int]) -> list[dict[str, str]]:
        total = 0
        for position, entry in enumerate(newest):
            total += lengths[_entry_text(entry)]
            if total > self.max_tokens:  # type: ignore[operator]
                return newest[:position] if position else [self._shorten(entry, total)]
        return newest

    def _shorten(self, entry: dict[str, str], length: int) -> dict[str, str]:
        assert self.max_tokens is not None
        share = self.max_tokens / length
        longest = max(map(len, entry.values()))
        while share * longest >= 0.9:  # down to one character each
            short = {name: _beginning(text, share) for name, text in entry.items()}
            if self._count([_entry_text(short)])[0] <= self.max_tokens:
                return short
            share *= 0.9
        raise ConfigError(f"history_max_tokens={self.max_tokens} is too small for a single past pair. Raise it.")


def _entry_text(entry: dict[str, str]) -> str:
    """A past pair as the template writes it."""
    return "".join(f"{label}{entry[name]}\n" for name, label in _LABELS.items() if entry.get(name))


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
    return read_record(tokenizer, _RECORD, {"inputs", "num_history", "max_tokens", "fields"})


def reads_history(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model of a tokenizer was trained with histories, as it remembers; one that was trained elsewhere was not."""
    record = remembered(tokenizer)
    return record is not None and record["num_history"] != 0


def read_record(tokenizer: PreTrainedTokenizerBase, name: str, keys: set[str]) -> dict[str, Any] | None:
    """What a training of this package wrote into the tokenizer under a name; `None` where nothing did.

    Raises:
        ConfigError: If it does not have just these keys.
    """
    record = tokenizer.init_kwargs.get(name)
    if record is None:
        return None
    if not isinstance(record, dict) or set(record) != keys:
        raise ConfigError(
            f"`{name}` of the tokenizer {tokenizer.name_or_path!r} is not as trl-pafo writes it: {record!r:.200}. Train the model again."
        )
    return record


def forget(tokenizer: PreTrainedTokenizerBase) -> None:
    """Take away what [`HistoryCutter.remember`] wrote."""
    tokenizer.init_kwargs.pop(_RECORD, None)


def history_problem(history: Any, fields: Sequence[str] = HISTORY_FIELDS) -> str | None:
    """What keeps a history from being shown with these fields; `None` where nothing does. No history is an empty one."""
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


def history_of(row: Mapping[str, Any]) -> Any:
    """The history of a row: that of its own column, or, without it, the one that is rendered already."""
    return row["history"] if "history" in row else (row.get(_KWARGS) or {}).get("history")


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
    past = [{name: Value("string") for name in cutter.fields}]
    features = {**_features_as_messages(dataset), _KWARGS: {**_variables(dataset), "history": past}}
    given = features.pop("history", None) is not None
    return dataset.with_format(None).map(
        partial(_render, cutter=cutter, names=_text_columns(dataset)),
        batched=True,
        features=Features(features),
        remove_columns=["history"] if given else None,
        num_proc=num_proc,
        desc="Rendering histories",
    )


def _render(batch: Mapping[str, list[Any]], cutter: HistoryCutter, names: list[str]) -> dict[str, list[Any]]:
    kwargs = [variables or {} for variables in batch[_KWARGS]] if _KWARGS in batch else [{}] * len(batch["chosen"])
    histories = batch["history"] if "history" in batch else [variables.get("history") for variables in kwargs]
    cut = cutter.cut_all(histories)
    rendered = [{**variables, "history": history} for variables, history in zip(kwargs, cut, strict=True)]
    return {**_texts_as_messages(batch, names), _KWARGS: rendered}


def rows_as_messages(dataset: Dataset, num_proc: int | None = None) -> Dataset:
    """Standard (text) rows as conversational ones, each text as one message."""
    names = _text_columns(dataset)
    if not names:
        return dataset
    build = partial(_texts_as_messages, names=names)
    features = Features(_features_as_messages(dataset))
    return dataset.with_format(None).map(build, batched=True, features=features, num_proc=num_proc, desc="Texts as messages")


def _text_columns(dataset: Dataset) -> list[str]:
    kinds = {name: getattr(dataset.features.get(name), "dtype", None) for name in _ROLES}
    return [name for name, kind in kinds.items() if kind in ("string", "large_string")]


def _features_as_messages(dataset: Dataset) -> dict[str, Any]:
    message = [{"role": Value("string"), "content": Value("string")}]
    return {**dataset.features, **dict.fromkeys(_text_columns(dataset), message)}


def _texts_as_messages(batch: Mapping[str, list[Any]], names: list[str]) -> dict[str, list[Any]]:
    return {name: [as_messages(value, _ROLES[name]) for value in batch[name]] for name in names}


def without_history(rows: Dataset) -> Dataset:
    """The same rows with an empty history: what a reward model that is not personalized sees."""

    def empty(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {_KWARGS: [{**(variables or {}), "history": []} for variables in batch[_KWARGS]]}

    return rows.with_format(None).map(empty, batched=True, features=rows.features, desc="Leaving out histories")


def is_rendered(dataset: Dataset) -> bool:
    """Whether the rows bring their history in `chat_template_kwargs`, as those of `trl-pafo prepare` do."""
    return "history" in _variables(dataset)


def _variables(dataset: Dataset) -> dict[str, Any]:
    """Features of the variables of the chat template that the rows bring."""
    kwargs = dataset.features.get(_KWARGS)
    if type(kwargs).__name__ == "Json":
        raise DataError(f"`{_KWARGS}` holds values of several types under one name. Give each variable one type in all rows.")
    return kwargs if isinstance(kwargs, dict) else {}


def remember_rendering(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the tokenizer remember how the rows were rendered, see [`HistoryCutter.remember`]."""
    shown: set[str] = set()
    longest = 0
    for row in read_rows(dataset, [_KWARGS]):
        history = history_of(row) or []
        longest = max(longest, len(history))
        shown |= {name for entry in history for name in HISTORY_FIELDS if entry.get(name)}
    HistoryCutter(tokenizer, longest, fields=[name for name in HISTORY_FIELDS if name in shown] or HISTORY_FIELDS).remember()


def past_pairs(rows: Dataset) -> tuple[Dataset, list[list[int]]]:
    """The different past pairs in the `history` of rows, and for each row the numbers of its own among them."""
    number_of: defaultdict[tuple[str, ...], int] = defaultdict(lambda: len(number_of))
    different: list[dict[str, Any]] = []
    past: list[list[int]] = []
    for row in read_rows(rows, ["history"]):
        own = []
        for entry in row["history"] or []:
            number = number_of[tuple(content_key(entry[name]) for name in HISTORY_FIELDS)]
            if number == len(different):
                different.append({name: entry[name] for name in HISTORY_FIELDS})
            own.append(number)
        past.append(own)
    return Dataset.from_list(different), past
