"""One way from rows to what a reward model reads: as its training read them, which its tokenizer remembers."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_pafo.data.history import HistoryCutter, history_of, history_problem, remembered, render_history, rows_as_messages
from trl_pafo.data.messages import as_messages
from trl_pafo.data.rows import read_rows
from trl_pafo.data.template import add_history_template
from trl_pafo.data.tokenization import tokenize_row
from trl_pafo.errors import DataError

_SIDES = ("response", "chosen", "rejected")


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
        inputs, with_history = self._check(read_rows(rows, names), lambda row: f"{what}, row {row}", what)
        if inputs == "messages" and with_history:
            return render_history(rows, self.cutter, num_proc)
        if "history" in rows.column_names:
            rows = rows.remove_columns("history")
        return rows_as_messages(rows, num_proc) if inputs == "messages" else rows

    def sequences(
        self, rows: Sequence[Mapping[str, Any]], name: Callable[[int], str] = "row {}".format, *, allow_no_history: bool = False
    ) -> list[dict[str, list[int]]]:
        """Token ids of the responses of rows, as the model's training made them.

        Args:
            rows (`Sequence[Mapping]`):
                Rows with `response`, or with `chosen` and `rejected`, and optional `prompt`, `history` (newest pair first),
                `chat_template_kwargs` and `tools`.
            name (`Callable`, *optional*):
                From the number of a row to its name, for errors and warnings.
            allow_no_history (`bool`, *optional*, defaults to `False`):
                Whether all rows may lack a history, which is an error for a model that was trained with them.

        Returns:
            `list[dict[str, list[int]]]`: For each row, the ids of its `response`, `chosen` and `rejected`.

        Raises:
            DataError: If a row cannot be read as in the training; the message names it.
        """
        plain: list[dict[str, Any]] = [_plain(row) for row in rows]
        inputs, with_history = self._check(plain, name, "The rows", allow_no_history)
        sides = [[side for side in _SIDES if side in row] for row in plain]
        if inputs == "messages":
            cut = self.cutter.cut_all([history_of(row) for row in plain]) if with_history else []
            for number, (row, own) in enumerate(zip(plain, sides, strict=True)):
                row["prompt"] = as_messages(row.get("prompt") or [], "user")
                row |= {side: as_messages(row[side], "assistant") for side in own}
                if with_history:
                    row["chat_template_kwargs"] = {**(row.get("chat_template_kwargs") or {}), "history": cut[number]}
        return [
            {side: tokenize_row(self.tokenizer, row, side, name(number)) for side in own}
            for number, (row, own) in enumerate(zip(plain, sides, strict=True))
        ]

    def _check(
        self, rows: Iterable[Mapping[str, Any]], name: Callable[[int], str], what: str, allow_no_history: bool = False
    ) -> tuple[str, bool]:
        """How rows are read, `"text"` or `"messages"`, and whether with a history, if the model can read them as in its training."""
        is_text, has_prompt, has_past, with_history = [], [], [], False
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
            is_text.append(True in kinds)
            has_prompt.append(bool(row.get("prompt")))
            has_past.append(bool(history))
            with_history |= bool(history_of(row))
        text, prompt, past = np.array([is_text, has_prompt, has_past], dtype=bool)
        inputs = self._inputs(text, prompt, past, name, what, allow_no_history)
        if inputs == "messages" and with_history:
            add_history_template(self.tokenizer)  # a model that was trained elsewhere may have none that takes it
        elif inputs == "messages" and self.tokenizer.chat_template is None:
            raise DataError(
                f"{what}: these are messages, and the model's tokenizer has no chat template to write them with. Give texts as in "
                "its training."
            )
        return inputs, with_history

    def _inputs(
        self, is_text: Any, has_prompt: Any, has_past: Any, name: Callable[[int], str], what: str, allow_no_history: bool
    ) -> str:
        first = lambda rows: name(int(np.flatnonzero(rows)[0]))  # noqa: E731
        if self.trained is None:
            return "text" if is_text.all() and not has_past.any() else "messages"
        if self.trained["num_history"] == 0 and has_past.any():
            raise DataError(
                f"{first(has_past)} has a history, and the model was trained without histories. Leave `history` out, or set "
                "num_history to 0 to show none."
            )
        if self.trained["num_history"] != 0 and self.cutter.num_history != 0 and not has_past.all():
            if not has_past.any() and not allow_no_history:
                raise DataError(
                    f"{what}: no row has a history, and the model was trained with histories: without one it serves all users "
                    "alike, close to what the majority prefers. Give each row the `history` of its user, or set num_history to 0 if "
                    "that is intended."
                )
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{(~has_past).sum()} of {len(has_past)} rows have no history (the first: {first(~has_past)}), and the model "
                    "was trained with histories: all these users get the rewards of a user without a history.",
                    stacklevel=4,
                )
        if self.trained["inputs"] == "text" and not is_text.all():
            raise DataError(
                f"{first(~is_text)} holds messages, and the model was trained on texts. Give it texts, as in training."
            )
        if self.trained["inputs"] == "messages" and (is_text & ~has_prompt).any():
            raise DataError(
                f"{first(is_text & ~has_prompt)} is a text without a prompt, and the model was trained on messages: it is unknown "
                "who said what. Give `prompt` and the response, or messages."
            )
        return self.trained["inputs"]


def _plain(value: Any) -> Any:
    """Rows as pandas has them, with arrays for lists and NaN for what is missing, as plain objects."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value
