"""Groups in the rows of a run that come from training pairs alone."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from trl_pafo.data.messages import content_text
from trl_pafo.data.overlap import pair_texts, telling_fields
from trl_pafo.data.sources.splits import is_cut_by_support
from trl_pafo.errors import ConfigError
from trl_pafo.evaluation.tastes import Tastes, find_tastes
from trl_pafo.evaluation.text_features import embed_texts


class InferredGroups(NamedTuple):
    """Rows with `group` and `support_rate` anew; what was found; whether the test users' groups are named by the data; and the posterior
    of the group of each user whose group was found."""

    splits: dict[str, Dataset]
    tastes: Tastes
    named: bool
    posterior: dict[str, float]


def infer_groups(splits: Mapping[str, Dataset], embedding_model: str, seed: int = 0) -> InferredGroups:
    """Find groups in the training pairs, and give each row its user's.

    Groups that the data name are not looked at in training and validation. Test users keep them, if they have the names of those that
    were found. Everybody else without training pairs is put where the history of the user's first row fits best: its pairs are not judged,
    so no group is made of the labels that it is judged by.

    Args:
        splits (`Mapping`):
            `train`, `test` and, optionally, `validation`, with `prompt`, `chosen`, `rejected`, `user`, `group`, `support_rate` and `history`.
        embedding_model (`str`):
            As in [`~trl_pafo.evaluation.text_features.embed_texts`].
        seed (`int`, *optional*, defaults to `0`):
            As in [`~trl_pafo.evaluation.tastes.find_tastes`].

    Raises:
        ConfigError: If the model cannot be loaded, or the group of a user should follow from a history that is empty.
        DataError: If the training pairs are on one prompt, or are all the same.
    """
    train, test = splits["train"], splits["test"]
    users = train["user"][:]
    past: dict[str, list[dict[str, Any]]] = {user: [] for user in users}
    for rows in (splits[name] for name in ("validation", "test") if name in splits):
        histories = rows["history"][:] if "history" in rows.column_names else [None] * len(rows)
        for user, history in zip(rows["user"][:], histories, strict=True):
            past.setdefault(user, history or [])
    for user in set(users):
        del past[user]
    sides = ("chosen", "rejected")
    entries: list[dict[str, Any]] = train.select_columns(["prompt", *sides]).to_list()
    fields = telling_fields(train)
    prompts = ["\n".join(pair_texts(entry, fields)) for entry in entries]
    entries += [entry for history in past.values() for entry in history]
    texts = [content_text(entry[side]) for entry in entries for side in sides]
    features = embed_texts(texts, embedding_model, num_reference=len(sides) * len(train), desc=f"Features of {embedding_model}")
    differences = features[::2] - features[1::2]
    tastes = find_tastes(differences[: len(train)], users, prompts, seed=seed, desc="Groups")
    found = tastes.assign(differences[: len(train)], users)
    share_of = {name: number / len(found) for name, number in Counter(group for group, _ in found.values()).items()}

    known = set(users)
    tested = {user: group for user, group in zip(test["user"][:], test["group"][:], strict=True) if user not in known}
    named = bool(tested) and set(tested.values()) <= set(tastes.names) and len(tastes.names) > 1 and not is_cut_by_support(test)
    found |= dict.fromkeys(past, (tastes.names[0], float(np.exp(tastes.mixture.log_shares[0]))))
    if owner := [user for user, history in past.items() for _ in history]:
        found |= tastes.assign(differences[len(train) :], owner)
    group_of = {user: group for user, (group, _) in found.items()} | (tested if named else {})
    if len(tastes.names) > 1 and any(not history for user, history in past.items() if not (named and user in tested)):
        raise ConfigError(
            "Groups of users without training pairs follow from their past pairs, of which `num_history=0` shows none. Raise it."
        )
    built = {}
    for name, rows in splits.items():
        group = [group_of[user] for user in rows["user"][:]]
        rows = rows.remove_columns(["group", "support_rate"]).add_column("group", np.array(group))
        built[name] = rows.add_column("support_rate", np.array([share_of[own] for own in group]))
    posterior = {user: q for user, (_, q) in found.items() if not (named and user in tested)}
    return InferredGroups(built, tastes, named, posterior)
