"""Rows to rewards: a saved model that loads, tokenizes and scores, which everything that scores uses."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from trl_pafo.data.named_groups import reads_groups
from trl_pafo.data.rendering import InputRenderer, Reading
from trl_pafo.errors import ConfigError
from trl_pafo.models.batches import pool_sequences, score_sequences
from trl_pafo.models.loading import as_dtype, check_positions, load_reward_model, pad_id_of, plain_device, positions_of
from trl_pafo.models.ranks import same_model
from trl_pafo.models.safe_loading import identity_of_folder, load_config, load_saved_tokenizer, local_folder
from trl_pafo.models.weights import check_reward_model


class FeatureReader:
    """
    A model in memory that says of each response what its reward head reads. It gives no rewards: the head may be a new one.

    Args:
        model (`torch.nn.Module`):
            Sequence classification model with one label, as [`~trl_pafo.models.base_models.with_new_head`] loads a base.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        device (`torch.device` or `str`, *optional*):
            Where the model stands; by default the accelerator of this process, or the CPU.
        bf16 (`bool`, *optional*, defaults to `False`):
            Compute in bfloat16 mixed precision.
        history:
            Other options of [`~trl_pafo.data.rendering.InputRenderer`].
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: torch.device | str | None = None,
        bf16: bool = False,
        **history: Any,
    ):
        self.device = plain_device(PartialState().device if device is None else device)
        self.bf16 = bf16
        self.tokenizer = tokenizer
        self.renderer = InputRenderer(tokenizer, **history)
        self._given = model

    def _load(self) -> Any:
        return self._given

    @cached_property
    def model(self) -> Any:
        """The model, frozen, in evaluation mode."""
        return self._load().requires_grad_(False).to(self.device).eval()

    @cached_property
    def positions(self) -> int | None:
        """Number of positions of the model; `None` if unlimited or unknown."""
        return positions_of(self.model.config)

    def tokenize(
        self,
        rows: Sequence[Mapping[str, Any]],
        name: Callable[[int], str] = "row {}".format,
        **how: Any,
    ) -> list[dict[Any, list[int]]]:
        """Token ids of the responses of rows, each with its prompt; `allow_no_history` and `reading` as for [`~RewardScorer.score`]."""
        sequences = self.sequences(rows, name, **how)
        check_positions([max(map(len, row.values())) for row in sequences], self.positions, "rows", "the model", name)
        return sequences

    def sequences(
        self,
        rows: Sequence[Mapping[str, Any]],
        name: Callable[[int], str],
        *,
        allow_no_history: bool = False,
        reading: Reading | None = None,
    ) -> list[dict[Any, list[int]]]:
        """All that the model reads of each row, whose lengths are not looked at; see
        [`~trl_pafo.data.rendering.InputRenderer.sequences`].
        """
        found: Any = self.renderer.sequences(rows, name, allow_no_history=allow_no_history, reading=reading)
        return found

    def features(
        self, sequences: Sequence[Mapping[str, Sequence[int]]], *, batch_size: int = 32, desc: str | None = None
    ) -> list[dict[str, np.ndarray]]:
        """What the reward head reads of rows that are tokenized, each of shape `(hidden_size,)`; see [`pool_sequences`]."""
        return _by_side(self._read(pool_sequences, sequences, batch_size=batch_size, desc=desc), sequences)

    def _read(self, read: Callable[..., np.ndarray], sequences: Sequence[Mapping[str, Sequence[int]]], **how: Any) -> np.ndarray:
        ids = [ids for row in sequences for ids in row.values()]
        pad_id = pad_id_of(self.model.config, self.tokenizer)
        return read(self.model, ids, pad_id, device=self.device, autocast=self.autocast, **how)

    def autocast(self) -> AbstractContextManager:
        """The precision of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


class RewardScorer(FeatureReader):
    """
    A saved reward model, or an adapter on its base, that gives rows their rewards. The weights are loaded when they are first needed.

    Args:
        folder (`str` or `Path`):
            Folder of the model with its tokenizer; [`RewardScorer.from_pretrained`] takes a Hub id too.
        device (`torch.device` or `str`, *optional*):
            Where the model stands; by default the accelerator of this process, or the CPU.
        bf16 (`bool`, *optional*, defaults to `False`):
            Compute in bfloat16 mixed precision.
        dtype (`torch.dtype` or `str`, *optional*, defaults to `"float32"`):
            The dtype that the weights are loaded in, also `"bfloat16"` or `"float16"`, which take half of the memory.
        num_history (`int`, *optional*):
            At most this many past pairs in the prompt, in place of what the model remembers of its training; `0` shows none.
        history_max_tokens (`int`, *optional*):
            Token budget of the history, in place of what is remembered.
        history_fields (`Sequence[str]`, *optional*):
            What of a past pair is shown, in place of what is remembered.

    Raises:
        ConfigError: If it could not give rewards, see [`~trl_pafo.models.weights.check_reward_model`], or an option cannot be used.

    Example:

    ```python
    >>> scorer = RewardScorer.from_pretrained("fair-reward-model")
    >>> scorer.score([{"prompt": "Can I freeze bread?", "response": "Yes, slice it first.", "history": []}])
    [{'response': 1.25}]
    ```
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: torch.device | str | None = None,
        bf16: bool = False,
        dtype: torch.dtype | str = "float32",
        num_history: int | None = None,
        history_max_tokens: int | None = None,
        history_fields: Sequence[str] | None = None,
    ):
        self.folder = Path(folder)
        self._is_that_of_all = False
        check_reward_model(self.folder)
        self.dtype = as_dtype(dtype)
        if str(dtype).removeprefix("torch.") not in ("float32", "bfloat16", "float16"):
            raise ConfigError(f"`dtype` must be float32, bfloat16 or float16, got {dtype!r}.")
        history: dict[str, Any] = {"num_history": num_history, "max_tokens": history_max_tokens, "fields": history_fields}
        super().__init__(None, load_saved_tokenizer(self.folder), device=device, bf16=bf16, **history)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None, **options: Any) -> "RewardScorer":
        """The scorer of a folder or Hub id; `options` are those of the class. Of a model that reads the names of groups it is a
        [`~trl_pafo.models.group_scorer.GroupScorer`].

        Raises:
            TeacherError: If there is no such folder and no such repository.
        """
        folder = local_folder(str(source), revision)
        if cls is RewardScorer and reads_groups(folder):
            from trl_pafo.models.group_scorer import GroupScorer

            return GroupScorer(folder, **options)
        return cls(folder, **options)

    def _load(self) -> Any:
        return load_reward_model(self.folder, self.dtype)

    @cached_property
    def positions(self) -> int | None:
        """Number of positions of the model; `None` if unlimited or unknown."""
        return positions_of(load_config(self.folder))

    def score(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        batch_size: int = 32,
        desc: str | None = None,
        name: Callable[[int], str] = "row {}".format,
        allow_no_history: bool = False,
        reading: Reading | None = None,
        processes: PartialState | None = None,
    ) -> list[dict[str, float]]:
        """Raw rewards (no sigmoid) of the responses of rows, which are read as the model was trained.

        Args:
            rows (`Sequence[Mapping]`):
                Rows with `response`, or with `chosen` and `rejected`, texts or messages, and optional `prompt`, `history` (newest pair
                first), `chat_template_kwargs` and `tools`. None is cut.
            batch_size (`int`, *optional*, defaults to `32`):
                Responses in a forward pass.
            desc (`str`, *optional*):
                Title of the progress bar; no bar without it.
            name (`Callable`, *optional*):
                From the number of a row to its name, for errors.
            allow_no_history (`bool`, *optional*, defaults to `False`):
                Whether rows may lack a history though the model was trained with histories, as a batch of new users does.
            reading ([`~trl_pafo.data.rendering.Reading`], *optional*):
                How these rows and others, which were checked, are read together.
            processes ([`~accelerate.PartialState`], *optional*):
                All of them call this with the same rows, and share the forward passes; see [`in_batches`].

        Returns:
            `list[dict[str, float]]`: For each row, the reward of its `response`, or of its `chosen` and its `rejected`.

        Raises:
            DataError: If a row cannot be read as in the training, or is longer than the model's positions.
            TeacherError: If a reward is not finite.
        """
        sequences = self.tokenize(rows, name, allow_no_history=allow_no_history, reading=reading)
        return self.score_tokens(sequences, batch_size=batch_size, desc=desc, processes=processes)

    def score_tokens(self, sequences: Sequence[Mapping[Any, Sequence[int]]], **how: Any) -> list[dict[str, float]]:
        """Rewards of rows that are tokenized, as [`~RewardScorer.tokenize`] returns them; see [`~RewardScorer.read_tokens`]."""
        return self.combine(self.read_tokens(sequences, **how))

    def read_tokens(
        self,
        sequences: Sequence[Mapping[Any, Sequence[int]]],
        *,
        batch_size: int = 32,
        desc: str | None = None,
        processes: PartialState | None = None,
    ) -> list[dict[Any, float]]:
        """What the model gives for each sequence of rows that are tokenized; see [`~RewardScorer.score`]."""
        if processes is not None and not self._is_that_of_all:
            same_model(self.folder, identity_of_folder(self.folder))
            self._is_that_of_all = True
        rewards = self._read(score_sequences, sequences, batch_size=batch_size, desc=desc, accelerator=processes)
        return _by_side(rewards.tolist(), sequences)

    def combine(self, found: Sequence[Mapping[Any, float]]) -> list[dict[str, float]]:
        """The rewards of the responses of rows from what the model gives for their sequences; here they are the same."""
        return [dict(row) for row in found]


def _by_side(found: Iterable[Any], sequences: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was found of all sequences of rows, in their order."""
    left = iter(found)
    return [{side: next(left) for side in row} for row in sequences]
