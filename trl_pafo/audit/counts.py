"""How many users, pairs and groups there are, how much support they have, and which pairs are too long."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_pafo.data.history import HistoryCutter, render_history
from trl_pafo.data.messages import content_key
from trl_pafo.data.tokenization import tokenize_row

BIN_WIDTH = 0.05


def count_all(rows: Dataset) -> dict[str, Any]:
    """Numbers of pairs, users and prompts, overall and by group, and the support rates of each group's users."""
    columns = rows.select_columns(["user", "group", "support_rate"]).to_dict()
    pairs_of = Counter(columns["user"])
    group_of = dict(zip(columns["user"], columns["group"], strict=True))
    support_of = dict(zip(columns["user"], columns["support_rate"], strict=True))
    groups = {}
    for name, num_users in Counter(group_of.values()).most_common():
        members = [user for user, group in group_of.items() if group == name]
        groups[name] = {
            "users": num_users,
            "share_of_users": num_users / len(group_of),
            "pairs": sum(pairs_of[user] for user in members),
            "support_rate": _spread([support_of[user] for user in members]),
        }
    return {
        "pairs": len(rows),
        "users": len(group_of),
        "prompts": len({content_key(prompt) for prompt in rows["prompt"][:]}),
        "pairs_a_user": _spread(list(pairs_of.values())),
        "groups": groups,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": float(min(values)), "median": float(np.median(values)), "max": float(max(values))}


def support_histogram(rows: Dataset) -> dict[str, Any]:
    """Users by support rate: `edges` of bins of width 0.05 around 0, 0.05, ... 1, and the number of users of each group in each."""
    columns = rows.select_columns(["user", "group", "support_rate"]).to_dict()
    support_of = dict(zip(columns["user"], columns["support_rate"], strict=True))
    group_of = dict(zip(columns["user"], columns["group"], strict=True))
    edges = np.arange(-0.5, 1.0 / BIN_WIDTH + 1.0) * BIN_WIDTH
    users_in = {}
    for name in dict.fromkeys(sorted(group_of.values())):
        rates = [support_of[user] for user, group in group_of.items() if group == name]
        users_in[name] = np.histogram(rates, edges)[0].tolist()
    return {"edges": np.round(edges, 6).tolist(), "users": users_in}


def dropped_by_length(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, cutter: HistoryCutter, max_length: int | None
) -> dict[str, Any]:
    """Which pairs RewardTrainer would leave out, because a response with its prompt and history is longer than `max_length`.

    Args:
        rows ([`~datasets.Dataset`]):
            Rows with `prompt`, `chosen`, `rejected`, `group`, `history`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Counts the tokens; its chat template takes the history.
        cutter ([`~trl_pafo.data.history.HistoryCutter`]):
            What of a history is shown.
        max_length (`int`, *optional*):
            Most tokens of an input; `None` for no limit.

    Returns:
        `dict`: `max_length`, and for each group `pairs`, `dropped`, `share`, and the `median` and `max` length in tokens.
    """
    ready = render_history(rows, cutter)
    lengths_of: dict[str, list[int]] = {}
    for row in ready:
        sides = (tokenize_row(tokenizer, row, side) for side in ("chosen", "rejected"))
        lengths_of.setdefault(row["group"], []).append(max(map(len, sides)))
    groups = {}
    for name, lengths in sorted(lengths_of.items()):
        dropped = 0 if max_length is None else sum(length > max_length for length in lengths)
        groups[name] = {
            "pairs": len(lengths),
            "dropped": dropped,
            "share": dropped / len(lengths),
            "median": float(np.median(lengths)),
            "max": max(lengths),
        }
    return {"max_length": max_length, "groups": groups}
