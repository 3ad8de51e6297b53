"""One way from rows to what a reward model reads: as its training read them, which its tokenizer remembers."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from trl_pafo.data import HISTORY_FIELDS, checks
from trl_pafo.data.history import HistoryCutter, history_problem, is_rendered, remembered, render_history, rows_as_messages
from trl_pafo.data.messages import as_messages
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
        with_history = "history" in rows.column_names or is_rendered(rows)
        num_past = np.zeros(len(rows), np.int64)
        if with_history and not self._shows_none:
            num_past = checks.check_history(rows, what, self.cutter.fields, may_lack=True)
        names = [name for name in HISTORY_FIELDS if name in rows.column_names]
        texts = {name for name in names if len(rows) and isinstance(rows[0][name], str)}
        if texts and texts != set(names):
            raise DataError(
                f"{what}: {', '.join(sorted(texts))} hold texts, and the others messages. Give all as texts or all as messages."
            )
        is_text = np.full(len(rows), bool(texts))
        has_prompt = np.full(len(rows), "prompt" in names)
        inputs = self._inputs(is_text, has_prompt, num_past, what, lambda row: f"{what}, row {row}", all_lack=not num_past.any())
        if inputs == "text":
            return rows.remove_columns("history") if "history" in rows.column_names else rows
        self._check_template(with_history, what)
        if with_history:
            return render_history(rows, self.cutter, num_proc)
        return rows_as_messages(rows, num_proc) if texts else rows

    def sequences(
        self, rows: Sequence[Mapping[str, Any]], name: Callable[[int], str] = "row {}".format, *, all_lack: bool | None = None
    ) -> list[dict[str, list[int]]]:
        """Token ids of the responses of rows, as the model's training made them.

        Args:
            rows (`Sequence[Mapping]`):
                Rows with `response`, or with `chosen` and `rejected`, and optional `prompt`, `history` (newest pair first),
                `chat_template_kwargs` and `tools`.
            name (`Callable`, *optional*):
                From the number of a row to its name, for errors and warnings.
            all_lack (`bool`, *optional*):
                Whether there are no histories at all, which is an error for a model that was trained with them. By default,
                whether none of the rows has one.

        Returns:
            `list[dict[str, list[int]]]`: For each row, the ids of its `response`, `chosen` and `rejected`.

        Raises:
            DataError: If a row cannot be read as in the training; the message names it.
        """
        rows = [_plain(row) for row in rows]
        kwargs = [dict(row.get("chat_template_kwargs") or {}) for row in rows]
        histories = [
            row["history"] if "history" in row else given.get("history") for row, given in zip(rows, kwargs, strict=True)
        ]
        sides = [[side for side in _SIDES if side in row] for row in rows]
        texts = [
            [isinstance(row[part], str) for part in ("prompt", *own) if row.get(part)]
            for row, own in zip(rows, sides, strict=True)
        ]
        for number, kinds in enumerate(texts):
            for side in sides[number]:
                if rows[number][side] is None:
                    raise DataError(f"{name(number)}: `{side}` is missing (None). Fill it, or leave such rows out.")
            if any(kinds) and not all(kinds):
                raise DataError(f"{name(number)}: some are texts and some are messages. Give all as texts or all as messages.")
        if not self._shows_none:
            for number, history in enumerate(histories):
                if problem := history_problem(history, ()):
                    raise DataError(f"{name(number)}: {problem}.")
        num_past = np.array([0 if self._shows_none else len(history or []) for history in histories], dtype=np.int64)
        inputs = self._inputs(
            np.array([any(kinds) for kinds in texts], dtype=bool),
            np.array([bool(row.get("prompt")) for row in rows], dtype=bool),
            num_past,
            "The rows",
            name,
            all_lack=not num_past.any() if all_lack is None else all_lack,
        )
        with_history = any(history is not None for history in histories)
        ready = [dict(row) for row in rows]
        if inputs == "messages":
            self._check_template(with_history, "The rows")
            for number, (row, own, given) in enumerate(zip(ready, sides, kwargs, strict=True)):
                row["prompt"] = as_messages(row["prompt"], "user") if row.get("prompt") else []
                row |= {side: as_messages(row[side], "assistant") for side in own}
                try:
                    row["chat_template_kwargs"] = {**given, "history": self.cutter(histories[number])} if with_history else given
                except DataError as error:
                    raise DataError(f"{name(number)}: {error}") from error
        return [
            {side: tokenize_row(self.tokenizer, row, side, name(number)) for side in own}
            for number, (row, own) in enumerate(zip(ready, sides, strict=True))
        ]

    def _inputs(
        self,
        is_text: NDArray[np.bool_],
        has_prompt: NDArray[np.bool_],
        num_past: NDArray[np.int64],
        what: str,
        name: Callable[[int], str],
        all_lack: bool,
    ) -> str:
        """How rows are read, `"text"` or `"messages"`, if the model can read them as in its training."""
        past, lacking = np.flatnonzero(num_past), np.flatnonzero(num_past == 0)
        if self.trained is None:
            return "text" if is_text.all() and not len(past) else "messages"
        if self.trained["num_history"] == 0 and len(past):
            raise DataError(
                f"{name(int(past[0]))} has a history, and the model was trained without histories. Leave `history` out, or set "
                "num_history to 0 to show none."
            )
        if self.trained["num_history"] != 0 and self.cutter.num_history != 0 and len(lacking):
            if all_lack:
                raise DataError(
                    f"{what}: no row has a history, and the model was trained with histories: without one it serves every user alike, "
                    "as the majority wants it. Give each row the `history` of its user, or set num_history to 0 if that is meant."
                )
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{len(lacking)} of {len(num_past)} rows have no history (the first: {name(int(lacking[0]))}), and the model was "
                    "trained with histories: it serves these users alike, as the majority wants it.",
                    stacklevel=3,
                )
        if self.trained["inputs"] == "text" and not is_text.all():
            raise DataError(
                f"{name(int(np.flatnonzero(~is_text)[0]))} holds messages, and the model was trained on texts. Give texts as in its "
                "training."
            )
        alone = np.flatnonzero(is_text & ~has_prompt)
        if self.trained["inputs"] == "messages" and len(alone):
            raise DataError(
                f"{name(int(alone[0]))} is a text without a prompt, and the model was trained on messages: nothing says whose turns it "
                "holds. Give `prompt` and the response, or messages."
            )
        return self.trained["inputs"]

    def _check_template(self, with_history: bool, what: str) -> None:
        if with_history:
            add_history_template(self.tokenizer)  # a model that was trained elsewhere may have none that takes it
        elif self.tokenizer.chat_template is None:
            raise DataError(
                f"{what}: these are messages, and the model's tokenizer has no chat template to write them with. Give texts as in "
                "its training."
            )


def _plain(value: Any) -> Any:
    """Rows as they come of pandas: with arrays for lists, and NaN for what is missing."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value
