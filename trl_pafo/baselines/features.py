"""What methods that describe a user by a vector see of pairs: features of each response, and of the user's past pairs."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from trl_pafo.data.history import history_of, is_rendered, past_pairs
from trl_pafo.data.rows import read_rows
from trl_pafo.errors import DataError
from trl_pafo.models.group_scorer import without_past
from trl_pafo.models.safe_loading import reason
from trl_pafo.models.scoring import FeatureReader
from trl_pafo.storage.files import replacing

_SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class FeaturePairs:
    """
    Features of pairs and of what their users chose before.

    Attributes:
        pairs (`torch.Tensor` of shape `(num_pairs, 2, num_features)`):
            Features of the chosen and of the rejected response, float32.
        past_pairs (`torch.Tensor` of shape `(num_past_pairs, 2, num_features)`):
            Those of different past pairs.
        past (`list[list[int]]`):
            For each pair, the numbers of its user's past pairs.
        user (`torch.Tensor` of shape `(num_pairs,)`):
            The number of each pair's user, from 0 to `num_users - 1`.
    """

    pairs: torch.Tensor
    past_pairs: torch.Tensor
    past: list[list[int]]
    user: torch.Tensor

    @property
    def num_users(self) -> int:
        """The number of different users."""
        return int(self.user.max()) + 1

    def context(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The past pairs of some pairs, padded with zeros, of shape `(num_rows, longest, 2, num_features)`, and which are there, of shape
        `(num_rows, longest)`."""
        numbers = self._past_numbers[rows]
        is_there = numbers >= 0
        numbers = numbers[:, : max(1, int(is_there.sum(dim=1).max()))]
        is_there = is_there[:, : numbers.shape[1]]
        context = self.pairs.new_zeros(*numbers.shape, *self.pairs.shape[1:])
        context[is_there] = self.past_pairs[numbers[is_there]]
        return context, is_there

    @cached_property
    def _past_numbers(self) -> torch.Tensor:
        own = [torch.tensor(numbers or [-1]) for numbers in self.past]
        return torch.nn.utils.rnn.pad_sequence(own, batch_first=True, padding_value=-1)

    def standardized(self, mean: torch.Tensor, scale: torch.Tensor) -> "FeaturePairs":
        """The same with each feature less its mean, divided by its scale, both of shape `(num_features,)`."""
        return replace(self, pairs=(self.pairs - mean) / scale, past_pairs=(self.past_pairs - mean) / scale)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        lengths = torch.tensor([len(own) for own in self.past], dtype=torch.long)
        flat = torch.tensor([number for own in self.past for number in own], dtype=torch.long)
        tensors = {"pairs": self.pairs, "past_pairs": self.past_pairs, "past": flat, "num_past": lengths, "user": self.user}
        with replacing(Path(path)) as temporary:
            save_file(tensors, temporary)

    @classmethod
    def load(cls, path: str | Path) -> "FeaturePairs":
        """Read what [`~FeaturePairs.save`] wrote.

        Raises:
            DataError: If the file holds no such features.
        """
        try:
            found = load_file(path)
            past = [own.tolist() for own in found["past"].split(found["num_past"].tolist())]
            return cls(found["pairs"], found["past_pairs"], past, found["user"])
        except Exception as error:  # it may be missing, cut off, or something else
            raise DataError(f"{path} holds no features of pairs ({reason(error)}). Save them again.") from error


def pair_features(reader: FeatureReader, rows: Dataset, *, batch_size: int = 32, desc: str | None = None) -> FeaturePairs:
    """Features of pairs: the hidden state that the reward head of a model reads, of each response with its prompt alone.

    Every different text is read once.

    Args:
        reader ([`~trl_pafo.models.scoring.FeatureReader`]):
            A [`~trl_pafo.models.scoring.RewardScorer`], or a base with a new head. One that was trained with histories is shown none here.
        rows ([`~datasets.Dataset`]):
            Rows with `prompt`, `chosen`, `rejected`, `user` and `history`, as [`~trl_pafo.data.attaching.attach_history`] or
            `trl-pafo prepare` make them; of prepared rows, as many past pairs count as they show, with all their fields.
        batch_size (`int`, *optional*, defaults to `32`):
            Pairs in a forward pass.
        desc (`str`, *optional*):
            Title of the progress bar; no bar without it.

    Raises:
        ConfigError: If the model has no linear reward head.
        DataError: If rows lack a column, cannot be read as the model was trained, or have more tokens than it has positions.
    """
    missing = [name for name in ("prompt", *_SIDES, "user", "history") if name not in rows.column_names]
    if missing:
        fix = (
            "attach_history of trl_pafo.data.attaching makes histories of the users' other pairs"
            if "history" in missing
            else "Add them"
        )
        raise DataError(f"The rows lack {', '.join(missing)}. {fix}.")
    entries, past = past_pairs(rows)
    if is_rendered(rows):
        shown = [len(history_of(row) or []) for row in read_rows(rows, ["chat_template_kwargs"])]
        past = [own[:number] for own, number in zip(past, shown, strict=True)]
    names = [name for name in ("prompt", *_SIDES, "chat_template_kwargs", "tools") if name in rows.column_names]
    alone = [without_past(row) for row in read_rows(rows, names)]
    reading = reader.renderer.reading(alone, allow_no_history=True)
    ids = [
        *reader.tokenize(alone, reading=reading),
        *reader.tokenize(entries.to_list(), "past pair {}".format, reading=reading),
    ]
    found = reader.features(ids, batch_size=2 * batch_size, desc=desc)
    both = torch.from_numpy(np.array([[row[side] for side in _SIDES] for row in found], dtype=np.float32))
    user = np.unique(np.asarray(rows["user"][:]), return_inverse=True)[1]
    return FeaturePairs(both[: len(rows)], both[len(rows) :], past, torch.from_numpy(user))
