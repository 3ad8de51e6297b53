"""Rows to rewards: one way of loading, tokenizing and scoring, which everything that scores uses."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from trl_pafo.data.rendering import InputRenderer, Reading
from trl_pafo.errors import ConfigError, DataError, TeacherError, TrlPafoError
from trl_pafo.models.safe_loading import (
    SAFELY,
    adapter_config,
    base_folder,
    has_tokenizer,
    load_config,
    load_saved_tokenizer,
    local_folder,
    reason,
)
from trl_pafo.models.weights import check_reward_model, complete_weights
from trl_pafo.prefix_sharing.forward import forward_shared
from trl_pafo.prefix_sharing.packing import forward_packed
from trl_pafo.prefix_sharing.packing_choice import choose_packing
from trl_pafo.prefix_sharing.rows import PAIR_LENGTHS, collate_pairs, pair_lengths

BATCHES_AT_ONCE = 16
"""Batches of rows that are sorted by length together, wherever there may be more rows than fit into memory."""


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
        *,
        allow_no_history: bool = False,
        reading: Reading | None = None,
    ) -> list[dict[str, list[int]]]:
        """Token ids of the responses of rows, each with its prompt; see [`~RewardScorer.score`]."""
        sequences = self.renderer.sequences(rows, name, allow_no_history=allow_no_history, reading=reading)
        check_positions([max(map(len, row.values())) for row in sequences], self.positions, "rows", "the model", name)
        return sequences

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
        check_reward_model(self.folder)
        self.dtype = as_dtype(dtype)
        if str(dtype).removeprefix("torch.") not in ("float32", "bfloat16", "float16"):
            raise ConfigError(f"`dtype` must be float32, bfloat16 or float16, got {dtype!r}.")
        history: dict[str, Any] = {"num_history": num_history, "max_tokens": history_max_tokens, "fields": history_fields}
        super().__init__(None, load_saved_tokenizer(self.folder), device=device, bf16=bf16, **history)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None, **options: Any) -> "RewardScorer":
        """The scorer of a folder or Hub id; `options` are those of the class.

        Raises:
            TeacherError: If there is no such folder and no such repository.
        """
        return cls(local_folder(str(source), revision), **options)

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

    def score_tokens(
        self,
        sequences: Sequence[Mapping[str, Sequence[int]]],
        *,
        batch_size: int = 32,
        desc: str | None = None,
        processes: PartialState | None = None,
    ) -> list[dict[str, float]]:
        """Rewards of rows that are tokenized, as [`~RewardScorer.tokenize`] returns them; see [`~RewardScorer.score`].

        The `processes`, all of which call this with the same rows, share the work.
        """
        rewards = self._read(score_sequences, sequences, batch_size=batch_size, desc=desc, accelerator=processes)
        return _by_side(rewards.tolist(), sequences)


def _by_side(found: Iterable[Any], sequences: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was found of all sequences of rows, in their order."""
    left = iter(found)
    return [{side: next(left) for side in row} for row in sequences]


def load_reward_model(
    folder: str | Path, dtype: torch.dtype = torch.float32, *, is_trainable: bool = False, quantization_config: Any = None
) -> Any:
    """A saved reward model or adapter, in evaluation mode, only from safetensors and without code of its own.

    No weight is drawn at random, pooling looks for the pad id of the training, and whatever a launcher shards, the model is complete on
    every process.

    Args:
        folder (`str` or `Path`):
            Folder of a checkpoint or an adapter.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            The dtype that it is loaded in.
        is_trainable (`bool`, *optional*, defaults to `False`):
            Whether an adapter is to be trained further.
        quantization_config (*optional*):
            How the base of an adapter is quantized when it is loaded; by default it is taken as it was saved.

    Raises:
        ConfigError: If it cannot be loaded so, or weights are missing, see [`~trl_pafo.models.weights.check_reward_model`].
    """
    folder = Path(folder)
    check_reward_model(folder)
    adapter = adapter_config(folder)
    tokenizer = load_saved_tokenizer(folder) if has_tokenizer(folder) else None
    options: dict[str, Any] = {} if quantization_config is None else {"quantization_config": quantization_config}
    try:
        with complete_weights():
            if adapter is None:
                model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, **SAFELY)
            else:
                base = AutoModelForSequenceClassification.from_pretrained(
                    base_folder(adapter), num_labels=1, ignore_mismatched_sizes=True, dtype=dtype, **SAFELY, **options
                )  # a head of another shape is replaced by that of the adapter, or was refused
                if tokenizer is not None and len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
                    base.resize_token_embeddings(len(tokenizer))
                model = _with_adapter(base, folder, is_trainable)
    except TrlPafoError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"No reward model can be loaded from {folder}: {reason(error)}. Use another model, or save it again."
        ) from error
    config = model.config.get_text_config()
    config.pad_token_id = trained_pad_id(config, tokenizer, adapter is not None)
    return model.eval()


def _with_adapter(base: Any, folder: Path, is_trainable: bool) -> Any:
    """An adapter on its base in memory, of any task type: a head that it does not hold is that of the base."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(base, folder, is_trainable=is_trainable, **SAFELY)
        except UserWarning as error:
            raise ConfigError(f"The adapter {folder} lacks weights: {reason(error)}. Save it again.") from error


def trained_pad_id(config: Any, tokenizer: PreTrainedTokenizerBase | None, is_adapter: bool) -> int | None:
    """The pad id that a saved model was trained with; `None` where nothing says.

    It stands in the configuration of a checkpoint. The base of an adapter was not changed by the training, so there the tokenizer of
    the adapter decides. A tokenizer without a pad token pads with its end token, as in RewardTrainer.
    """
    own = config.get_text_config().pad_token_id
    if tokenizer is None or (own is not None and not is_adapter):
        return own
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return tokenizer.eos_token_id if own is None else own


def pad_id_of(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The pad id that a model of this configuration was trained with; the tokenizer's where the model knows none.

    Raises:
        ConfigError: If neither knows one.
    """
    own = config.get_text_config().pad_token_id
    known = tokenizer.pad_token_id if own is None else own
    if known is None:
        raise ConfigError(
            "Neither the model nor its tokenizer has a pad token, which pooling looks for. Set tokenizer.pad_token and "
            "model.config.pad_token_id to what the model was trained with, and save both."
        )
    return known


def positions_of(config: Any) -> int | None:
    """Number of positions of a model of this configuration; `None` if unlimited or unknown."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_positions(
    lengths: Sequence[int] | np.ndarray,
    positions: int | None,
    what: str,
    whose: str,
    name: Callable[[int], str] = "row {}".format,
) -> None:
    """Raise where rows, whose longest sequences have these lengths, have more tokens than a model has positions.

    Raises:
        DataError: If a row is too long; the message names the first.
    """
    too_long = [] if positions is None else np.flatnonzero(np.asarray(lengths) > positions).tolist()
    if too_long:
        raise DataError(
            f"{len(too_long)} of {len(lengths)} {what} are longer than the {positions} positions of {whose}, the first is "
            f"{name(too_long[0])}. Lower `history_max_tokens`, cut the responses, or leave such rows out."
        )


def check_batch_size(batch_size: int) -> None:
    """Raise [`ConfigError`] if `batch_size` is no integer above 0."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"`batch_size` must be a whole number of at least 1, got {batch_size!r}.")


def plain_device(device: torch.device | str) -> torch.device:
    """The same device; the CPU without the number that a launcher gives it. To move weights to that would copy them, and weights at other
    addresses are multiplied in another order: another last bit than in one process."""
    found = torch.device(device)
    return torch.device("cpu") if found.type == "cpu" else found


def as_dtype(name: torch.dtype | str | None) -> torch.dtype:
    """The dtype of an option `dtype`; float32 where it names none, as `"auto"`."""
    return name if isinstance(name, torch.dtype) else getattr(torch, name or "float32", torch.float32)


def reward_of(outputs: Any) -> torch.Tensor:
    """Rewards of shape `(num_sequences,)` from the output of a sequence classification model with one label.

    Raises:
        ConfigError: If the output is that of another kind of model.
    """
    logits = getattr(outputs, "logits", None)
    if logits is None or logits.dim() != 2 or logits.shape[1] != 1:
        found = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
        raise ConfigError(
            f"A reward model gives one number per sequence, and this one gives {found}. Load it with "
            "AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)."
        )
    return logits.squeeze(-1)


def score_sequences(
    model: torch.nn.Module,
    sequences: Sequence[Sequence[int]],
    pad_token_id: int,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    desc: str | None = None,
    accelerator: Accelerator | PartialState | None = None,
) -> np.ndarray:
    """Rewards of token sequences, each independent of its neighbors, raw (no sigmoid).

    Sequences of similar length share a batch, so that little is computed on padding, and on a CPU encoders compute none
    ([`~trl_pafo.prefix_sharing.packing.forward_packed`]); equal sequences are scored once.

    Args:
        model (`torch.nn.Module`):
            Sequence classification model with one label.
        sequences (`Sequence[Sequence[int]]`):
            Token ids.
        pad_token_id (`int`):
            The pad id that the model was trained with: pooling looks for it.
        batch_size (`int`, *optional*, defaults to `32`):
            Sequences in a forward pass.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`):
            Where the model stands.
        autocast (`Callable`, *optional*):
            Makes the context manager of a forward pass, as `Accelerator.autocast` does.
        desc (`str`, *optional*):
            Title of the progress bar; no bar without it.
        accelerator ([`~accelerate.Accelerator`] or [`~accelerate.PartialState`], *optional*):
            Its processes, all of which call this with the same sequences, share the batches; see [`in_batches`].

    Returns:
        `np.ndarray` of shape `(num_sequences,)`, float32.

    Raises:
        ConfigError: If `batch_size` is no integer above 0.
        TeacherError: If a reward is not finite.
    """
    how: dict[str, Any] = {"autocast": autocast, "desc": desc, "accelerator": accelerator}
    read = lambda outputs: reward_of(outputs)[:, None]  # noqa: E731
    return _read_sequences(model, sequences, pad_token_id, read, 1, batch_size, device, how)[:, 0]


def pool_sequences(
    model: torch.nn.Module,
    sequences: Sequence[Sequence[int]],
    pad_token_id: int,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    desc: str | None = None,
) -> np.ndarray:
    """The hidden state of each token sequence that the reward head makes its reward of: of a decoder that of the last token, of an
    encoder what its head has pooled. The arguments are those of [`score_sequences`].

    Returns:
        `np.ndarray` of shape `(num_sequences, hidden_size)`, float32.

    Raises:
        ConfigError: If the model has no linear reward head with one output.
    """
    inner: Any = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)
    backbone = f"{getattr(inner, 'base_model_prefix', '')}."
    heads = [name for name, m in inner.named_modules() if getattr(m, "out_features", 0) == 1 and not name.startswith(backbone)]
    heads = [name for name in heads if not any(name.startswith(f"{other}.") for other in heads)]  # within adapted ones
    if not heads:
        raise ConfigError(
            f"{type(inner).__name__} has no linear reward head with one output to take features from. Use another model."
        )
    width = inner.get_submodule(heads[0]).in_features
    # The head gives back what it reads, so that the model's own forward pass pools it.
    hooks = [inner.get_submodule(name).register_forward_hook(lambda module, args, output: args[0]) for name in heads]
    how: dict[str, Any] = {"autocast": autocast, "desc": desc}
    try:
        return _read_sequences(model, sequences, pad_token_id, lambda outputs: outputs.logits, width, batch_size, device, how)
    finally:
        for hook in hooks:
            hook.remove()


def _read_sequences(
    model: torch.nn.Module,
    sequences: Sequence[Sequence[int]],
    pad_token_id: int,
    read: Callable[[Any], torch.Tensor],
    width: int,
    batch_size: int,
    device: torch.device | str,
    how: Mapping[str, Any],
) -> np.ndarray:
    """What `read` takes from the output for each sequence, see [`in_batches`]."""
    call: Callable[..., Any] = partial(forward_packed, model) if choose_packing("auto", model).pack else model

    def forward(batch: list[tuple[int, ...]]) -> torch.Tensor:
        ids, mask = pad_sequences(batch, pad_token_id)
        return read(call(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False))

    return in_batches(model, [tuple(sequence) for sequence in sequences], len, forward, batch_size, width=width, **how)


def score_pairs(
    model: torch.nn.Module,
    chosen_ids: Sequence[Sequence[int]],
    rejected_ids: Sequence[Sequence[int]],
    pad_token_id: int,
    *,
    share_prefix: bool = False,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    desc: str | None = None,
    accelerator: Accelerator | PartialState | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of the chosen and of the rejected responses, each of shape `(num_pairs,)`. See [`score_sequences`].

    Args:
        share_prefix (`bool`, *optional*, defaults to `False`):
            Compute what both responses of a pair begin with once. The rewards are the same to rounding, if the model is one that
            [`~trl_pafo.prefix_sharing.choice.choose_sharing`] shares with. A pair still counts as two of `batch_size`.
    """
    how: dict[str, Any] = {"autocast": autocast, "desc": desc, "accelerator": accelerator}
    if not share_prefix:
        sequences = [*chosen_ids, *rejected_ids]
        rewards = score_sequences(model, sequences, pad_token_id, batch_size=batch_size, device=device, **how)
        return rewards[: len(chosen_ids)], rewards[len(chosen_ids) :]

    def forward(pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> torch.Tensor:
        rows = [{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in pairs]
        batch = {name: tensor.to(device) for name, tensor in collate_pairs(rows, pad_token_id).items()}
        outputs = forward_shared(model, batch["input_ids"], batch[PAIR_LENGTHS], use_cache=False)
        return torch.stack(reward_of(outputs).chunk(2), dim=1)

    keys = [(tuple(chosen), tuple(rejected)) for chosen, rejected in zip(chosen_ids, rejected_ids, strict=True)]
    num_pairs = batch_size if batch_size < 2 else batch_size // 2
    both = in_batches(model, keys, lambda pair: sum(pair_lengths(*pair)), forward, num_pairs, width=2, **how)
    return both[:, 0], both[:, 1]


def in_batches(
    model: torch.nn.Module,
    keys: Sequence[Any],
    length: Callable[[Any], int],
    forward: Callable[[list[Any]], torch.Tensor],
    batch_size: int,
    *,
    width: int = 1,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    desc: str | None = None,
    accelerator: Accelerator | PartialState | None = None,
) -> np.ndarray:
    """What a forward pass gives for each key, without gradients and dropout: equal keys once, those of similar length together.

    The batches are the same however many processes share them, and so are the numbers, to the last bit. Processes that run out of
    batches repeat the last one: all take equally many forward passes, as sharded weights need. `forward` makes a tensor of shape
    `(num_keys, width)` of a list of keys, which are hashable; the result has this shape, in float32, the same on every process.

    Raises:
        ConfigError: If `batch_size` is no integer above 0.
        DataError: If the processes were given different keys.
        TeacherError: If a number is not finite.
    """
    check_batch_size(batch_size)
    place: dict[Any, int] = {}
    index = np.fromiter((place.setdefault(key, len(place)) for key in keys), dtype=np.int64, count=len(keys))
    unique = list(place)
    # Longest first: a batch that does not fit into memory fails at once, not after an hour.
    order = sorted(range(len(unique)), key=lambda row: -length(unique[row]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rank, num_processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    turns = range(math.ceil(len(batches) / num_processes))
    found = []
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for turn in tqdm(turns, desc=desc, unit="batch", disable=desc is None or rank > 0):
                rows = batches[min(turn * num_processes + rank, len(batches) - 1)]
                with autocast():
                    numbers = forward([unique[row] for row in rows])
                found.append((rows, numbers.float().cpu().numpy()))
    finally:
        model.train(was_training)
    shares = [(hash(tuple(unique)), found)] if accelerator is None else gather_object([(hash(tuple(unique)), found)])
    if len({keys_of_share for keys_of_share, _ in shares}) > 1:
        raise DataError("The processes have read different rows. Let all of them see the same files and models, and start again.")
    results = np.full((len(unique), width), np.nan, dtype=np.float32)
    for rows, values in (batch for _, batches_of_share in shares for batch in batches_of_share):
        results[rows] = values
    if not np.isfinite(results).all():
        raise TeacherError(
            f"{int((~np.isfinite(results)).sum())} of {results.size} rewards are NaN or infinite; the model's weights or its "
            "dtype are broken. Train it again, or score it in float32."
        )
    return results[index]


def pad_sequences(sequences: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of shape `(num_sequences, longest)`, padded on the right."""
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return ids, mask.long()
