"""Training pairs that are shown under another history, or the name of another group, each time: rows of token ids, made as they are
asked for."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from trl_pafo.data.history import without_history
from trl_pafo.data.rows import rows_of_batch
from trl_pafo.data.showings import EveryGroup, HistoryDraw, Showing
from trl_pafo.data.tokenization import ID_COLUMNS, sequence_lengths, tokenize_pairs, tokenize_row
from trl_pafo.trainer.targets import Targets

logger = get_logger(__name__)


class ShownPairs(torch.utils.data.Dataset):
    """
    Rows by the number of their showing, `epoch * num_rows + row`, see [`ShowingSampler`]. (Not from the paper.)

    A showing has the pair's own columns, `chosen_ids` and `rejected_ids` under the history, or the name of the group, that is drawn, and
    with `targets` `teacher_margin`, what the student is to learn there, and `has_label`, whether history or group are those of the user
    who judged the pair. `tokens` are the pairs with the token ids under their own, `messages` the same in the same order as the template
    reads them, where no group is named.
    """

    def __init__(
        self,
        tokens: Dataset,
        messages: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        draw: HistoryDraw | EveryGroup,
        targets: Targets | None = None,
    ):
        columns = [name for name in (*ID_COLUMNS, "margin", "group") if name in tokens.column_names]
        self.tokens, self.messages = tokens.select_columns(columns), messages.with_format(None)
        self.tokenizer, self.draw, self.targets = tokenizer, draw, targets

    def __len__(self) -> int:
        return len(self.tokens) * self.draw.times

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        shown = [self.draw(number % len(self.tokens), number // len(self.tokens)) for number in numbers]
        rows = rows_of_batch(self.tokens[[each.row for each in shown]])
        for row, each in zip(rows, shown, strict=True):
            if each.donor != each.row or each.num_history != self.draw.num_past[each.row]:
                row |= self._tokenize(each)
        if self.targets is not None:
            margins = self.targets([each.row for each in shown], [each.donor for each in shown])
            for row, each, margin in zip(rows, shown, margins.tolist(), strict=True):
                row |= {"teacher_margin": margin, "has_label": each.donor == each.row}
        return rows

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.__getitems__([number])[0]

    def _tokenize(self, shown: Showing) -> dict[str, list[int]]:
        row = self.draw.shown(self.messages, shown)
        sides = ("chosen", "rejected")
        return {f"{side}_ids": tokenize_row(self.tokenizer, row, side, f"Training row {shown.row}") for side in sides}


class ShowingSampler(Sampler[int]):
    """
    The order of a training's showings, each by the number `epoch * num_rows + row`, so that a data loader's worker knows the epoch.

    `rows` is the order of the rows; one that draws it anew each epoch has `set_epoch`. Where an epoch shows a row several `times`, the
    showings follow each other, and count as epochs in the number.
    """

    def __init__(self, rows: Any, times: int = 1):
        self.rows, self.times, self.epoch = rows, times, 0

    def set_epoch(self, epoch: int) -> None:
        """Show the rows of this epoch from now on."""
        self.epoch = epoch
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.rows) * self.times

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.times
        return ((first + time) * len(self.rows) + row for row in self.rows for time in range(self.times))


def shown_pairs(
    tokens: Dataset,
    given: Dataset,
    messages: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    targets: Targets | None,
    *,
    seed: int,
    tau: float | None,
    min_history: int | None,
    max_length: int | None,
) -> ShownPairs:
    """[`ShownPairs`] with histories under which no sequence is longer than `max_length`, and a warning of pairs for which there are
    none.
    """
    borrows = tau is not None and max_length is not None
    fits = fits_within(tokens, messages, tokenizer, max_length) if borrows else None  # type: ignore[arg-type]
    draw = HistoryDraw(given, messages, seed, tau, min_history, fits)
    for name, number in draw.without_donor.items():
        logger.warning(
            f"{number} training pairs of the group {name!r} keep their own history where another group is drawn: no history of that "
            "group lacks their prompt and leaves room for them. Lower `history_max_tokens`, raise `max_length` up to the positions of the model, or "
            "give users more past pairs."
        )
    return ShownPairs(tokens, messages, tokenizer, draw, targets)


def fits_within(
    tokens: Dataset, messages: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Callable[[int, int], bool]:
    """Whether the pair of a row, under the history of another, has at most `max_length` tokens."""
    of_pair = sequence_lengths(tokenize_pairs(without_history(messages), tokenizer, title="training"))
    of_history = (sequence_lengths(tokens) - of_pair).max(axis=1)
    room = max_length - of_pair.max(axis=1)
    return lambda row, donor: bool(of_history[donor] <= room[row])
