"""One way from rows to what a reward model reads: as its training read them, which its tokenizer remembers."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_pafo.data.history import HistoryCutter, history_of, history_problem, remembered, render_history, rows_as_messages
from trl_pafo.data.messages import as_messages, without_nones
from trl_pafo.data.rows import read_rows
from trl_pafo.data.template import add_history_template
from trl_pafo.data.tokenization import tokenize_row
from trl_pafo.errors import DataError

_SIDES = ("response", "chosen", "rejected")


class Reading(NamedTuple):
    """How rows are read together: as `"text"` or `"messages"`, and whether with a history."""

    inputs: str
    with_history: bool


class InputRenderer:
    """
    Rows as a model reads them: texts or messages, with or without a history, as in the training that its tokenizer remembers.

    A tokenizer that remembers nothing is that of a model trained elsewhere: texts are tokenized as RewardTrainer tokenizes
    texts, messages go through the chat template, and so do texts where rows have a history.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer that was saved with the model.
        num_history (`int`, *optional*):
            At most this many past pairs, in place of what is remembered. `0` says that none is to be shown.
        max_tokens (`int`, *optional*):
            Token budget of the history, in place of what is remembered.
        fields (`Sequence[str]`, *optional*):
            What of a past pair is shown, in place of what is remembered.

    Raises:
        ConfigError: If an option has a value that cannot be used.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        num_history: int | None = None,
        max_tokens: int | None = None,
        fields: Sequence[str] | None = None,
    ):
        self.tokenizer = tokenizer
        self.trained = remembered(tokenizer)
        """What the tokenizer remembers, see [`~trl_pafo.data.history.remembered`]."""
        self.cutter = HistoryCutter.of(tokenizer, num_history=num_history, max_tokens=max_tokens, fields=fields)
        self._shows_none = num_history == 0
        self._warned = False

    def render(self, rows: Dataset, what: str, num_proc: int | None = None) -> Dataset:
        """Pairs as rows that [`~trl_pafo.data.tokenization.tokenize_row`] and RewardTrainer tokenize as the model's training did.

        Args:
            rows ([`~datasets.Dataset`]):
                Rows with `chosen`, `rejected`, optional `prompt`, `history` and `chat_template_kwargs`.
            what (`str`):
                Name of the rows, for errors and warnings.
            num_proc (`int`, *optional*):
                Number of processes.

        Raises:
            DataError: If rows cannot be read as in the training; the message names the first.
        """
        names = [name for name in ("prompt", *_SIDES, "history", "chat_template_kwargs") if name in rows.column_names]
        inputs, with_history = self.reading(read_rows(rows, names), lambda row: f"{what}, row {row}", what)
        if inputs == "messages" and with_history:
            return render_history(rows, self.cutter, num_proc)
        if "history" in rows.column_names:
            rows = rows.remove_columns("history")
        return rows_as_messages(rows, num_proc) if inputs == "messages" else rows

    @property
    def needs_history(self) -> bool:
        """Whether the model was trained with histories, and some is to be shown."""
        return self.trained is not None and self.trained["num_history"] != 0 and self.cutter.num_history != 0

    def check_told(self, row: Mapping[str, Any], place: str) -> None:
        """Raise where a row that comes alone says nothing of a history that the model was trained with: [] says that there is none.

        Raises:
            DataError: If it has no `history`; the message names its `place`.
        """
        if self.needs_history and history_of(row) is None:
            raise DataError(
                f"{place}: `history` is missing, and the model was trained with histories: without one it serves all users alike, close "
                "to what the majority prefers. Give the user's past pairs, or [] for a user who has none yet."
            )

    def sequences(
        self,
        rows: Sequence[Mapping[str, Any]],
        name: Callable[[int], str] = "row {}".format,
        *,
        allow_no_history: bool = False,
        reading: Reading | None = None,
    ) -> list[dict[str, list[int]]]:
        """Token ids of the responses of rows, as the model's training made them.

        Args:
            rows (`Sequence[Mapping]`):
                Rows with `response`, or with `chosen` and `rejected`, and optional `prompt`, `history` (newest pair first),
                `chat_template_kwargs` and `tools`.
            name (`Callable`, *optional*):
                From the number of a row to its name, for errors and warnings.
            allow_no_history (`bool`, *optional*, defaults to `False`):
                Whether rows may lack a history that the model was trained with: some, without a warning, or all, without an error.
            reading ([`Reading`], *optional*):
                What [`~InputRenderer.reading`] gave for these rows and others, which are then not checked again.

        Returns:
            `list[dict[str, list[int]]]`: For each row, the ids of its `response`, `chosen` and `rejected`.

        Raises:
            DataError: If a row cannot be read as in the training; the message names it.
        """
        given: list[dict[str, Any]] = [plain(row) for row in rows]
        inputs, with_history = reading or self.reading(given, name, allow_no_history=allow_no_history)
        sides = [[side for side in _SIDES if side in row] for row in given]
        if inputs == "messages":
            cut = self.cutter.cut_all([history_of(row) for row in given]) if with_history else []
            for number, (row, own) in enumerate(zip(given, sides, strict=True)):
                row["prompt"] = as_messages(row.get("prompt") or [], "user")
                row |= {side: as_messages(row[side], "assistant") for side in own}
                if with_history:
                    row["chat_template_kwargs"] = {**(row.get("chat_template_kwargs") or {}), "history": cut[number]}
        return [
            {side: tokenize_row(self.tokenizer, row, side, name(number)) for side in own}
            for number, (row, own) in enumerate(zip(given, sides, strict=True))
        ]

    def reading(
        self,
        rows: Iterable[Mapping[str, Any]],
        name: Callable[[int], str] = "row {}".format,
        what: str = "The rows",
        *,
        allow_no_history: bool = False,
    ) -> Reading:
        """How the model reads rows, if it can read them as in its training. They are read once, and not kept.

        Args:
            rows (`Iterable[Mapping]`):
                Rows as those of [`~InputRenderer.sequences`].
            name (`Callable`, *optional*):
                From the number of a row, while it is read, to its name, for errors and warnings.
            what (`str`, *optional*, defaults to `"The rows"`):
                Name of them all.
            allow_no_history (`bool`, *optional*, defaults to `False`):
                As in [`~InputRenderer.sequences`].

        Raises:
            DataError: If a row cannot be read as in the training; the message names the first.
        """
        first: dict[str, str] = {}  # the first row of which something holds
        num_rows = num_past = 0
        with_history = False
        for number, row in enumerate(rows):
            given = {part: row[part] for part in ("prompt", *_SIDES) if part in row}
            for side, value in given.items():
                if value is None and side != "prompt":
                    raise DataError(f"{name(number)}: `{side}` is missing (None). Fill it, or leave such rows out.")
            filled = [value for value in given.values() if value] or [value for value in given.values() if value is not None]
            kinds = {isinstance(value, str) for value in filled}
            if len(kinds) > 1:
                raise DataError(f"{name(number)}: some are texts and some are messages. Give all as texts or all as messages.")
            history = None if self._shows_none else history_of(row)
            if problem := history_problem(history, self.cutter.fields):
                raise DataError(f"{name(number)}: {problem}.")
            holds = {"past" if history else "no past", "text" if True in kinds else "messages"}
            holds |= {"bare text"} if True in kinds and not row.get("prompt") else set()
            holds |= {"variables"} if _variables(row) else set()
            first |= {kind: name(number) for kind in holds - first.keys()}
            num_rows, num_past = num_rows + 1, num_past + bool(history)
            with_history |= bool(history_of(row))
        inputs = self._inputs(first, num_rows, num_past, what, allow_no_history)
        if inputs == "text" and "variables" in first:
            raise DataError(
                f"{first['variables']} has `tools` or `chat_template_kwargs`, which the chat template reads, and texts do not pass through it. "
                "Give messages, or leave them out."
            )
        if inputs == "messages" and self.tokenizer.chat_template is None:
            end = self.tokenizer.sep_token or self.tokenizer.eos_token
            warnings.warn(
                f"{what}: these are messages, and the model's tokenizer has no chat template: each message is written as its text and {end!r}. If "
                "the model was trained otherwise, save its template with its tokenizer, give texts, or score it with a function.",
                stacklevel=3,
            )
            add_history_template(self.tokenizer)
        elif inputs == "messages" and with_history:
            add_history_template(self.tokenizer)  # a model that was trained elsewhere may have one that takes none
        return Reading(inputs, with_history)

    def _inputs(self, first: Mapping[str, str], num_rows: int, num_past: int, what: str, allow_no_history: bool) -> str:
        if self.trained is None:
            return "messages" if "messages" in first or "past" in first else "text"
        if self.trained["num_history"] == 0 and "past" in first:
            raise DataError(
                f"{first['past']} has a history, and the model was trained without histories. Leave `history` out, or set "
                "num_history to 0 to show none."
            )
        if self.needs_history and "no past" in first and not allow_no_history:
            if not num_past:
                raise DataError(
                    f"{what}: no row has a history, and the model was trained with histories: without one it serves all users "
                    "alike, close to what the majority prefers. Give each row the `history` of its user (`trl-pafo prepare` "
                    "makes it), or set num_history to 0 if that is intended."
                )
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{num_rows - num_past} of {num_rows} rows have no history (the first: {first['no past']}), and the model "
                    "was trained with histories: all these users get the rewards of a user without a history.",
                    stacklevel=4,
                )
        if self.trained["inputs"] == "text" and "messages" in first:
            raise DataError(
                f"{first['messages']} holds messages, and the model was trained on texts. Give it texts, as in training."
            )
        if self.trained["inputs"] == "messages" and "bare text" in first:
            raise DataError(
                f"{first['bare text']} is a text without a prompt, and the model was trained on messages: it is unknown "
                "who said what. Give `prompt` and the response, or messages."
            )
        return self.trained["inputs"]


def _variables(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row has for the chat template beside a history."""
    given = {**(row.get("chat_template_kwargs") or {}), "tools": row.get("tools"), "history": None}
    return {name: value for name, value in without_nones(given).items() if value not in ({}, [], "", "[]")}


def plain(value: Any) -> Any:
    """Rows as pandas has them, with arrays for lists and NaN for what is missing, as plain objects."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value
