"""From rows of a source to what the probes see: a sample of users, frozen features of their answers, and who may show which past pair."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoModel

from trl_pafo.audit.probes import PairFeatures
from trl_pafo.data.messages import content_key, content_text
from trl_pafo.data.overlap import pair_texts, telling_fields
from trl_pafo.metrics.accuracy import FloatArray
from trl_pafo.models.base_models import load_base, load_tokenizer

logger = logging.getLogger(__name__)

MAX_PAIRS_A_USER = 30
MAX_TOKENS = 128
# The first layers know the words and the manner, the last ones the matter; which of them a preference is about is not known.
_DEPTHS = (0.0, 1 / 3, 2 / 3, 1.0)
# The length is one number beside four vectors; weighed like a vector, it would drown them.
_LENGTH_WEIGHT = 0.3


def embed_texts(
    texts: Sequence[str], model_name: str, *, num_reference: int | None = None, batch_size: int = 64, desc: str | None = None
) -> FloatArray:
    """Features of texts, equal texts embedded once.

    Each text is cut at 128 tokens; its hidden states at the depths 0, 1/3, 2/3 and 1 of the model are averaged over tokens, each
    dimension is divided by its standard deviation over the different texts, and each depth by the mean length of its vectors. The
    logarithm of the number of tokens (before cutting), standardized too, comes last.

    Args:
        texts (`Sequence[str]`):
            The texts.
        model_name (`str`):
            A Hub id, a folder, or `"minilm"` or `"smollm2"`; its head, if it has one, is not used.
        num_reference (`int`, *optional*):
            Standardize by the first so many texts; by all without it.
        batch_size (`int`, *optional*, defaults to `64`):
            Texts in a forward pass.
        desc (`str`, *optional*):
            Title of the progress bar; no bar without it.

    Returns:
        `numpy.ndarray` of shape `(num_texts, num_features)`.

    Raises:
        ConfigError: If the model cannot be loaded.
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


def sample_rows(rows: Dataset, max_pairs: int, seed: int) -> Dataset:
    """All pairs of some users, at most 30 of each, the groups in their proportions, at most about `max_pairs`.

    Rows of a user keep their order, and the users theirs. At least two users of each group are taken, where there are two.
    """
    rng = np.random.default_rng(seed)
    rows_of = _rows_of_users(rows)
    group_of = dict(zip(rows["user"][:], rows["group"][:], strict=True))
    kept = {
        user: sorted(rng.choice(own, MAX_PAIRS_A_USER, replace=False).tolist()) if len(own) > MAX_PAIRS_A_USER else own
        for user, own in rows_of.items()
    }
    share = min(1.0, max_pairs / sum(map(len, kept.values())))
    taken: set[str] = set()
    for group in sorted(set(group_of.values())):
        members = [user for user in kept if group_of[user] == group]
        rng.shuffle(members)
        budget = share * sum(len(kept[user]) for user in members)
        used = 0
        for number, user in enumerate(members):
            if number >= 2 and used + len(kept[user]) > budget:
                break
            taken.add(user)
            used += len(kept[user])
    sample = rows.select([row for user in kept if user in taken for row in kept[user]])
    if len(sample) < len(rows):
        logger.info("The probes take %d of %d pairs (%d of %d users).", len(sample), len(rows), len(taken), len(kept))
    return sample


def _rows_of_users(rows: Dataset) -> dict[str, list[int]]:
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, user in enumerate(rows["user"][:]):
        rows_of[user].append(row)
    return rows_of


def pair_features(rows: Dataset, embedding_model: str, *, batch_size: int = 64, desc: str | None = None) -> PairFeatures:
    """Features of pairs and of what their histories may show, as [`embed_texts`] makes them.

    Without a `history` column, the past of a pair are the user's other pairs on other prompts (with other responses, where all pairs
    have one prompt): the earlier ones, newest first, then the later ones.

    Args:
        rows ([`~datasets.Dataset`]):
            Rows with `prompt`, `chosen`, `rejected`, `user`, `group`, and `history` where the data brings one.
        embedding_model, batch_size, desc:
            As in [`embed_texts`].
    """
    entries: list[dict[str, Any]] = rows.select_columns(["prompt", "chosen", "rejected"]).to_list()
    fields = telling_fields(rows)
    keys = [pair_texts(entry, fields) for entry in entries]
    past: list[list[int]] = [[] for _ in entries]
    if "history" in rows.column_names:
        places: dict[tuple[str, ...], int] = {}
        for row, history in enumerate(rows["history"][:]):
            for entry in history or []:
                key = tuple(content_key(entry[name]) for name in ("prompt", "chosen", "rejected"))
                if key not in places:
                    places[key] = len(entries)
                    entries.append(entry)
                    keys.append(pair_texts(entry, fields))
                if not set(keys[row]) & set(keys[places[key]]):
                    past[row].append(places[key])
    else:
        for own in _rows_of_users(rows).values():
            for place, row in enumerate(own):
                past[row] = [
                    other for other in own[:place][::-1] + own[place + 1 :][::-1] if not set(keys[other]) & set(keys[row])
                ]
    texts = [content_text(entry[side]) for side in ("chosen", "rejected") for entry in entries]
    features = embed_texts(texts, embedding_model, batch_size=batch_size, desc=desc)
    return PairFeatures(
        differences=features[: len(entries)] - features[len(entries) :],
        prompt=np.unique(list(map("\n".join, keys)), return_inverse=True)[1].astype(np.int64),
        past=past,
        user=rows["user"][:],
        group=rows["group"][:],
    )
