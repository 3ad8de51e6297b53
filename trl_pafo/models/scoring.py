"""Pairs to rewards: one way of loading, tokenizing and scoring for teachers, evaluation and `trl-pafo score`."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from trl_pafo.errors import ConfigError, TeacherError, TrlPafoError
from trl_pafo.models.safe_loading import ADAPTER_CONFIG, SAFELY, check_model_folder, read_config, reason
from trl_pafo.models.weights import Shapes, find_gaps, name_some, shapes_in
from trl_pafo.prefix_sharing.forward import forward_shared
from trl_pafo.prefix_sharing.rows import PAIR_LENGTHS, collate_pairs, pair_lengths


def local_folder(source: str, revision: str | None = None) -> Path:
    """The folder of a saved model: as it is, or the Hub's snapshot (safetensors only).

    Args:
        source (`str`):
            Folder or Hub id.
        revision (`str`, *optional*):
            Branch, tag or commit of a Hub id.

    Raises:
        TeacherError: If there is no such folder and no such repository.
        ConfigError: If its weights are no safetensors, see [`~trl_pafo.models.safe_loading.check_model_folder`].
    """
    folder = Path(source) if _is_folder(source) else _snapshot(source, revision)
    check_model_folder(folder)
    return folder


def _is_folder(source: str) -> bool:
    try:
        return Path(source).is_dir()
    except (OSError, ValueError):  # too long a name, or one with a NUL
        return False


def _snapshot(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
        others = ["consolidated*", "original/*"]  # the same weights in the format of another library
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns, ignore_patterns=others))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise TeacherError(f"No model is found at {source!r}: no such folder, and the Hub does not give it ({error}).") from error


def adapter_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of an adapter in a folder; `None` where there is something else."""
    path = folder / ADAPTER_CONFIG
    return read_config(path) if path.is_file() else None


def base_folder(adapter: Mapping[str, Any]) -> Path:
    """The folder of an adapter's base.

    Args:
        adapter (`dict[str, Any]`):
            Configuration of the adapter.

    Raises:
        TeacherError, ConfigError: As [`local_folder`].
    """
    return local_folder(str(adapter.get("base_model_name_or_path")), adapter.get("revision"))


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer was saved in a folder."""
    return any((folder / name).exists() for name in ("tokenizer_config.json", "tokenizer.json"))


def load_saved_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a saved model, without code of its own.

    Raises:
        ConfigError: If it cannot be loaded so.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the Rust library raises nothing more particular
        raise ConfigError(
            f"No tokenizer can be loaded from {folder}: {reason(error)}. Save it there with save_pretrained."
        ) from error


def check_reward_model(folder: str | Path) -> None:
    """Raise where a saved model or adapter could not give rewards, or would give random ones; its weights are not read.

    Each weight has to be in the checkpoint, in the adapter, or in the base of the adapter.

    Args:
        folder (`str` or `Path`):
            Folder of a checkpoint or an adapter.

    Raises:
        ConfigError: If weights are missing, above all those of the reward head, if there is other than one label, or if it cannot
            be read. The message names the weights and the fix.
    """
    folder = Path(folder)
    check_model_folder(folder)
    adapter = adapter_config(folder)
    try:
        if adapter is None:
            base, brought = folder, {}
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        else:
            base = base_folder(adapter)
            config = AutoConfig.from_pretrained(base, num_labels=1, trust_remote_code=False)
            shapes = shapes_in(folder / "adapter_model.safetensors")
            brought = {name.removeprefix("base_model.model."): shape for name, shape in shapes.items()}
        gaps = find_gaps(base, config, brought)
        longer = 0 if adapter is None else _tokens_without_weights(folder, config, brought)
    except TrlPafoError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unloadable(folder, error) from error
    where = f"{folder} holds no" if adapter is None else f"Neither the adapter {folder} nor its base {base} holds"
    if gaps.missing:
        head = set(gaps.missing) <= set(gaps.of_head)
        fix = "Train it with RewardTrainer, and save the whole of it: model.save_pretrained, not that of a part of it"
        if adapter is not None and head:
            fix = "Train it again with task_type='SEQ_CLS', or with these layers in `modules_to_save`, or on a base that has a trained head"
        raise ConfigError(
            f"{where} weights for {name_some(gaps.missing)}{', so there is no reward head' if head else ''}: "
            f"they would be drawn at random, and the rewards with them. {fix}."
        )
    num_labels = getattr(config, "num_labels", None)
    if num_labels != 1:
        raise ConfigError(
            f"{folder} has num_labels={num_labels}; a reward model has one. Train it with RewardTrainer, or load it with num_labels=1."
        )
    if gaps.misfits:
        raise ConfigError(
            f"{where} weights of the right shape for {name_some(gaps.misfits)}. Save the model again, with its configuration."
        )
    if longer:
        raise ConfigError(
            f"The tokenizer of the adapter {folder} has {longer} tokens more than its base {base}, and the adapter holds no embeddings for "
            "them: they would be drawn at random. Save the adapter with save_embedding_layers=True, or with the tokenizer of the base."
        )


def check_loaded_model(model: Any, name: str) -> None:
    """Raise where a model in memory gives other than one reward a sequence.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model.
        name (`str`):
            What it is called in the message.

    Raises:
        ConfigError: If it has other than one label, or is a language model.
    """
    num_labels = getattr(getattr(model, "config", None), "num_labels", None)
    if num_labels != 1:
        raise ConfigError(
            f"{name} has num_labels={num_labels}; a reward model has one. Train it with RewardTrainer, or load it with num_labels=1."
        )
    if getattr(model, "get_output_embeddings", lambda: None)() is not None:
        raise ConfigError(
            f"{name} is a language model, {type(model).__name__}, which gives no rewards. Load it with "
            "AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)."
        )


def _tokens_without_weights(folder: Path, config: Any, brought: Shapes) -> int:
    """How many tokens of the tokenizer beside an adapter have no embedding, in its base or in itself."""
    if not has_tokenizer(folder):
        return 0
    known = config.get_text_config().vocab_size
    longer = len(load_saved_tokenizer(folder)) - known
    grown = any("embed" in name and "lora" not in name for name in brought)
    return 0 if grown else max(0, longer)


def load_reward_model(
    folder: str | Path, dtype: torch.dtype = torch.float32, *, is_trainable: bool = False, quantization_config: Any = None
) -> Any:
    """A saved reward model or adapter, in evaluation mode, only from safetensors and without code of its own.

    All that scores loads with it: no weight is drawn at random, and pooling looks for the pad id of the training.

    Args:
        folder (`str` or `Path`):
            Folder of a checkpoint or an adapter.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Number format in which it is loaded.
        is_trainable (`bool`, *optional*, defaults to `False`):
            Whether an adapter is to be trained further.
        quantization_config (*optional*):
            How the base of an adapter is quantized when it is loaded; by default it is taken as it was saved.

    Raises:
        ConfigError: If it cannot be loaded so, or weights are missing, see [`check_reward_model`].
    """
    folder = Path(folder)
    check_reward_model(folder)
    adapter = adapter_config(folder)
    options: dict[str, Any] = {} if quantization_config is None else {"quantization_config": quantization_config}
    try:
        if adapter is None:
            model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, **SAFELY)
        else:
            base = AutoModelForSequenceClassification.from_pretrained(
                base_folder(adapter), num_labels=1, ignore_mismatched_sizes=True, dtype=dtype, **SAFELY, **options
            )  # a head of another shape is replaced by that of the adapter, or was refused
            model = _with_adapter(base, folder, is_trainable)
    except TrlPafoError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unloadable(folder, error) from error
    config = model.config.get_text_config()
    config.pad_token_id = trained_pad_id(folder, config)
    return model.eval()


def _with_adapter(base: Any, folder: Path, is_trainable: bool) -> Any:
    """An adapter on its base in memory, of any task type: a head that it does not hold is that of the base."""
    from peft import PeftModel

    if has_tokenizer(folder):
        num_tokens = len(load_saved_tokenizer(folder))
        if num_tokens > base.get_input_embeddings().weight.shape[0]:
            base.resize_token_embeddings(num_tokens)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(base, folder, is_trainable=is_trainable, **SAFELY)
        except UserWarning as error:
            raise ConfigError(f"The adapter {folder} lacks weights: {reason(error)}. Save it again.") from error


def _unloadable(folder: Path, error: Exception) -> ConfigError:
    return ConfigError(f"No reward model can be loaded from {folder}: {reason(error)}. Name another, or save it again.")


def trained_pad_id(folder: Path, config: Any) -> int | None:
    """The pad id that a saved model was trained with; `None` where nothing says.

    The configuration of a checkpoint says it. The base of an adapter was not changed by the training, so there the tokenizer beside
    the adapter does. A tokenizer without a pad token pads with its end token, as in RewardTrainer.

    Args:
        folder (`Path`):
            Folder of a checkpoint or an adapter.
        config ([`~transformers.PretrainedConfig`]):
            Configuration of the model, or of the base.
    """
    own = config.get_text_config().pad_token_id
    if not has_tokenizer(folder) or (own is not None and adapter_config(folder) is None):
        return own
    tokenizer = load_saved_tokenizer(folder)
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return tokenizer.eos_token_id if own is None else own


def as_dtype(name: torch.dtype | str | None) -> torch.dtype:
    """The dtype of an option `dtype`; float32 where it names none, as `"auto"`."""
    return name if isinstance(name, torch.dtype) else getattr(torch, name or "float32", torch.float32)


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


def reward_of(outputs: Any) -> torch.Tensor:
    """Rewards of shape `(num_sequences,)` from the output of a sequence classification model with one label.

    Raises:
        ConfigError: If the output is that of another kind of model.
    """
    logits = getattr(outputs, "logits", None)
    if logits is None or logits.dim() != 2 or logits.shape[1] != 1:
        found = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
        raise ConfigError(
            f"A reward model gives one number a sequence, and this one gives {found}. Load it with "
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
) -> np.ndarray:
    """Rewards of token sequences, each scored alone of its neighbors, raw (no sigmoid).

    Sequences of similar length share a batch, so that little is computed on padding; equal sequences are scored once.

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

    Returns:
        `np.ndarray` of shape `(num_sequences,)`, float32.

    Raises:
        ConfigError: If `batch_size` is no whole number above 0.
        TeacherError: If a reward is not finite.
    """

    def forward(batch: list[tuple[int, ...]]) -> torch.Tensor:
        ids, mask = _pad(batch, pad_token_id)
        return reward_of(model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False))

    keys = [tuple(sequence) for sequence in sequences]
    return _score(model, keys, len, forward, batch_size, autocast, desc, "seq")


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
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of the chosen and of the rejected responses, each of shape `(num_pairs,)`. See [`score_sequences`].

    Args:
        share_prefix (`bool`, *optional*, defaults to `False`):
            Compute what both responses of a pair begin with once. The rewards are the same to rounding, if the model is one that
            [`~trl_pafo.prefix_sharing.choice.choose_sharing`] shares with. A pair still counts as two of `batch_size`.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "device": device, "autocast": autocast, "desc": desc}
    if not share_prefix:
        rewards = score_sequences(model, [*chosen_ids, *rejected_ids], pad_token_id, **options)
        return rewards[: len(chosen_ids)], rewards[len(chosen_ids) :]

    def forward(pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> torch.Tensor:
        rows = [{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in pairs]
        batch = {name: tensor.to(device) for name, tensor in collate_pairs(rows, pad_token_id).items()}
        outputs = forward_shared(model, batch["input_ids"], batch[PAIR_LENGTHS], use_cache=False)
        return torch.stack(reward_of(outputs).chunk(2), dim=1)

    keys = [(tuple(chosen), tuple(rejected)) for chosen, rejected in zip(chosen_ids, rejected_ids, strict=True)]
    rewards = _score(model, keys, length_of_row, forward, batch_size, autocast, desc, "pair", rewards_each=2)
    return rewards[:, 0], rewards[:, 1]


def length_of_row(pair: tuple[tuple[int, ...], tuple[int, ...]]) -> int:
    return sum(pair_lengths(*pair))


def _score(
    model: torch.nn.Module,
    keys: Sequence[Any],
    length: Callable[[Any], int],
    forward: Callable[[list[Any]], torch.Tensor],
    batch_size: int,
    autocast: Callable[[], AbstractContextManager],
    desc: str | None,
    unit: str,
    rewards_each: int = 1,
) -> np.ndarray:
    """Rewards of what `keys` stand for, equal ones computed once, those of similar length together."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"`batch_size` must be a whole number of at least 1, got {batch_size!r}.")
    place: dict[Any, int] = {}
    index = np.fromiter((place.setdefault(key, len(place)) for key in keys), dtype=np.int64, count=len(keys))
    unique = list(place)
    lengths = [length(key) for key in unique]
    # Longest first: a batch that does not fit into memory fails at once, not after an hour.
    order = sorted(range(len(unique)), key=lambda i: -lengths[i])
    rewards = np.full((len(unique), rewards_each) if rewards_each > 1 else len(unique), np.nan, dtype=np.float32)
    num_rows = max(1, batch_size // rewards_each)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), tqdm(total=len(unique), desc=desc, unit=unit, disable=desc is None) as bar:
            for start in range(0, len(order), num_rows):
                rows = order[start : start + num_rows]
                with autocast():
                    batch = forward([unique[row] for row in rows])
                rewards[rows] = batch.float().cpu().numpy()
                bar.update(len(rows))
    finally:
        model.train(was_training)
    if not np.isfinite(rewards).all():
        raise TeacherError(
            f"{int((~np.isfinite(rewards)).sum())} of {rewards.size} rewards are NaN or infinite; the model's weights or its "
            "dtype are broken. Train it again, or score it in float32."
        )
    return rewards[index]


def _pad(sequences: list[tuple[int, ...]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(s) for s in sequences)
    ids = torch.full((len(sequences), longest), pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        mask[row, : len(sequence)] = 1
    return ids, mask
