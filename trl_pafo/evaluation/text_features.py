"""Frozen features of texts, from the hidden states of a language model."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import AutoModel

from trl_pafo.metrics.accuracy import FloatArray
from trl_pafo.models.base_models import load_base, load_tokenizer

MAX_TOKENS = 128
# The first layers know the words and the manner, the last ones the matter; which of them a preference is about is not known.
_DEPTHS = (0.0, 1 / 3, 2 / 3, 1.0)
# The length is one number beside four vectors; weighed like a vector, it would drown them.
_LENGTH_WEIGHT = 0.3


def embed_texts(
    texts: Sequence[str], model_name: str, *, num_reference: int | None = None, batch_size: int = 64, desc: str | None = None
) -> FloatArray:
    """Features of texts, of shape `(num_texts, num_features)`, equal texts embedded once.

    Each text is cut at 128 tokens; its hidden states at the depths 0, 1/3, 2/3 and 1 of the model are averaged over tokens, each
    dimension is divided by its standard deviation over the different texts, and each depth by the mean length of its vectors. The
    logarithm of the number of tokens (before cutting), standardized too, comes last. With `num_reference`, the first so many texts
    standardize all.

    The model is a Hub id, a folder, or `"minilm"` or `"smollm2"`; its head, if it has one, is not used. One that cannot be loaded
    raises [`ConfigError`].
    """
    tokenizer = load_tokenizer(model_name)
    tokenizer.padding_side = "right"  # a decoder counts positions from the left
    model = load_base(AutoModel, model_name)
    device = PartialState().device
    model.to(device).eval()
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    ids = [tokens or [tokenizer.pad_token_id] for tokens in tokenizer(list(place))["input_ids"]]
    order = sorted(range(len(ids)), key=lambda i: -min(len(ids[i]), MAX_TOKENS))
    states: list[FloatArray] = []
    with torch.no_grad(), tqdm(total=len(ids), desc=desc, unit="text", disable=desc is None) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = tokenizer.pad({"input_ids": [ids[row][:MAX_TOKENS] for row in rows]}, return_tensors="pt").to(device)
            outputs = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True, use_cache=False
            )
            mask = batch["attention_mask"][..., None].float()
            layers = outputs.hidden_states
            picked = [layers[round(depth * (len(layers) - 1))].float() for depth in _DEPTHS]
            means = torch.stack([(layer * mask).sum(1) / mask.sum(1) for layer in picked], dim=1)
            states.append(means.cpu().numpy().astype(np.float64))
            bar.update(len(rows))
    pooled = np.empty((len(ids), len(_DEPTHS), states[0].shape[-1]))
    pooled[order] = np.concatenate(states)
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
