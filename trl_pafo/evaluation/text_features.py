"""Frozen features of texts, from the hidden states of a language model."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import PartialState
from transformers import AutoModel

from trl_pafo.metrics.accuracy import FloatArray
from trl_pafo.models.base_models import identity_of, load_base, load_tokenizer
from trl_pafo.models.batches import in_batches, pad_sequences
from trl_pafo.models.loading import plain_device
from trl_pafo.models.ranks import same_model
from trl_pafo.models.weights import complete_weights

MAX_TOKENS = 128
# The first layers know the words and the manner, the last ones the matter; which of them a preference is about is not known.
_DEPTHS = (0.0, 1 / 3, 2 / 3, 1.0)
# The length is one number beside four vectors; weighed like a vector, it would drown them.
_LENGTH_WEIGHT = 0.3


def embed_texts(
    texts: Sequence[str],
    model_name: str,
    *,
    num_reference: int | None = None,
    batch_size: int = 64,
    desc: str | None = None,
    processes: PartialState | None = None,
) -> FloatArray:
    """Features of texts, of shape `(num_texts, num_features)`, equal texts embedded once.

    Each text is cut at 128 tokens; its hidden states at the depths 0, 1/3, 2/3 and 1 of the model are averaged over tokens, each
    dimension is divided by its standard deviation over the different texts, and each depth by the mean length of its vectors. The
    logarithm of the number of tokens (before cutting), standardized too, comes last. With `num_reference`, the first so many texts
    standardize all. The `processes`, all of which call this with the same texts, share the forward passes.

    The model is a Hub id, a folder, or `"minilm"` or `"smollm2"`; its head, if it has one, is not used. One that cannot be loaded
    raises [`ConfigError`].
    """
    tokenizer = load_tokenizer(model_name)
    if processes is not None:
        same_model(model_name, identity_of(model_name))
    with complete_weights():
        model = load_base(AutoModel, model_name)
    device = plain_device(PartialState().device)
    model.to(device)
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    ids = [tuple(tokens or [tokenizer.pad_token_id]) for tokens in tokenizer(list(place))["input_ids"]]

    def forward(batch: list[tuple[int, ...]]) -> torch.Tensor:
        padded, attention = (part.to(device) for part in pad_sequences(batch, tokenizer.pad_token_id))
        layers = model(input_ids=padded, attention_mask=attention, output_hidden_states=True, use_cache=False).hidden_states
        mask = attention[..., None].float()
        picked = [layers[round(depth * (len(layers) - 1))].float() for depth in _DEPTHS]
        return torch.cat([(layer * mask).sum(1) / mask.sum(1) for layer in picked], dim=1)

    width = len(_DEPTHS) * model.config.get_text_config().hidden_size
    cut = [tokens[:MAX_TOKENS] for tokens in ids]
    means = in_batches(model, cut, len, forward, batch_size, width=width, desc=desc, accelerator=processes)
    pooled = means.astype(np.float64).reshape(len(ids), len(_DEPTHS), -1)
    known = len(set(texts[:num_reference]))  # different texts stand in the order in which they first occur
    blocks = [_standardized(pooled[:, depth], known) for depth in range(len(_DEPTHS))]
    lengths = np.log([[len(tokens)] for tokens in ids])
    features = np.concatenate([*blocks, _LENGTH_WEIGHT * _standardized(lengths, known)], axis=1)
    return features[[place[text] for text in texts]]


def _standardized(block: FloatArray, known: int) -> FloatArray:
    """By the mean, spread and size of the first `known` rows."""
    spread = block[:known].std(axis=0)
    scaled = (block - block[:known].mean(axis=0)) / np.where(spread > 1e-9, spread, 1.0)
    return scaled / max(float(np.sqrt((scaled[:known] ** 2).sum(axis=1).mean())), 1e-9)
