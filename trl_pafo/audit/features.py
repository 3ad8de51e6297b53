"""From rows of a source to what the probes see: a sample of users, and who may show which past pair."""

import logging
from collections import defaultdict
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset

from trl_pafo.audit.probes import PairFeatures
from trl_pafo.data.messages import content_key, content_text
from trl_pafo.data.overlap import pair_texts, telling_fields
from trl_pafo.evaluation.text_features import embed_texts

logger = logging.getLogger(__name__)

MAX_PAIRS_A_USER = 30


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


def pair_features(
    rows: Dataset, embedding_model: str, *, desc: str | None = None, processes: PartialState | None = None
) -> PairFeatures:
    """Features of pairs and of what their histories may show, as [`~trl_pafo.evaluation.text_features.embed_texts`] makes them.

    Without a `history` column, the past of a pair are the user's other pairs on other prompts (with other responses, where all
    pairs have one prompt): the earlier ones, newest first, then the later ones.
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
    features = embed_texts(texts, embedding_model, desc=desc, processes=processes)
    return PairFeatures(
        differences=features[: len(entries)] - features[len(entries) :],
        prompt=np.unique(list(map("\n".join, keys)), return_inverse=True)[1].astype(np.int64),
        past=past,
        user=rows["user"][:],
        group=rows["group"][:],
    )
