"""A saved reward model in memory, and what of it decides which texts it can read."""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.models.safe_loading import SAFELY, adapter_config, base_folder, has_tokenizer, load_saved_tokenizer, reason
from trl_pafo.models.weights import as_config_error, check_reward_model, complete_weights

_AFTER_PAD = (
    *("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod", "esm", "layoutlmv3", "lilt", "markuplm"),
)
"""Types of models whose positions begin after the number of the pad id: of the 514 of RoBERTa, 512 can be used."""

_TABLES = ("position_embeddings", "wpe", "embed_positions")
"""Last names of modules that hold an embedding for each position."""


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
    with as_config_error(folder), complete_weights():
        if adapter is None:
            model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, **SAFELY)
        else:
            base = AutoModelForSequenceClassification.from_pretrained(
                base_folder(adapter), num_labels=1, ignore_mismatched_sizes=True, dtype=dtype, **SAFELY, **options
            )  # a head of another shape is replaced by that of the adapter, or was refused
            if tokenizer is not None and len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
                base.resize_token_embeddings(len(tokenizer))
            model = _with_adapter(base, folder, is_trainable)
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
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if positions is None or text.model_type not in _AFTER_PAD or text.pad_token_id is None:
        return positions
    return positions - text.pad_token_id - 1


def table_positions(model: PreTrainedModel | PeftModel) -> int | None:
    """Number of tokens that a model with an embedding for each position can read, `None` where positions are computed or unknown."""
    tables = (name.endswith(_TABLES) for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding))
    positions = positions_of(model.config) if any(tables) else None
    if positions is None or not isinstance(model, PeftModel):
        return positions
    return positions - (getattr(model.active_peft_config, "num_virtual_tokens", None) or 0)


def check_positions(
    lengths: Iterable[int],
    positions: int | None,
    what: str,
    whose: str,
    name: Callable[[int], str] = "row {}".format,
) -> None:
    """Raise where rows, whose longest sequences have these lengths, have more tokens than a model has positions. The lengths are not kept.

    Raises:
        DataError: If a row is too long; the message names the first.
    """
    num_rows = num_long = first = 0
    for num_rows, length in enumerate(lengths, start=1):
        if positions is not None and length > positions:
            first = first if num_long else num_rows - 1
            num_long += 1
    if num_long:
        raise DataError(
            f"{num_long} of {num_rows} {what} are longer than the {positions} positions of {whose}, the first is {name(first)}. Lower "
            "`history_max_tokens`, cut the responses, or leave such rows out."
        )


def plain_device(device: torch.device | str) -> torch.device:
    """The same device; the CPU without the number that a launcher gives it. To move weights to that would copy them, and weights at other
    addresses are multiplied in another order: another last bit than in one process."""
    found = torch.device(device)
    return torch.device("cpu") if found.type == "cpu" else found


def as_dtype(name: torch.dtype | str | None) -> torch.dtype:
    """The dtype of an option `dtype`; float32 where it names none, as `"auto"`."""
    return name if isinstance(name, torch.dtype) else getattr(torch, name or "float32", torch.float32)
