"""How many users, pairs and groups there are, how much support they have, and which pairs are too long."""

from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_pafo.data.history import HistoryCutter, render_history
from trl_pafo.data.messages import content_key
from trl_pafo.data.tokenization import tokenize_row


def count_all(rows: Dataset) -> dict[str, Any]:
    """Numbers of pairs, users and prompts, overall and by group (the largest first), and the support rate of each user of a group."""
    frame = rows.select_columns(["user", "group", "support_rate"]).to_pandas()
    users = frame.groupby("user").agg(group=("group", "first"), support=("support_rate", "first"), pairs=("group", "size"))
    groups: dict[str, dict[str, Any]] = {
        str(name): {
            "users": len(members),
            "share_of_users": len(members) / len(users),
            "pairs": int(members["pairs"].sum()),
            "support_rates": sorted(members["support"].tolist()),
        }
        for name, members in users.groupby("group")
    }
    return {
        "pairs": len(rows),
        "users": len(users),
        "prompts": len({content_key(prompt) for prompt in rows["prompt"][:]}),
        "pairs_a_user": {name: float(value) for name, value in users["pairs"].agg(["min", "median", "max"]).items()},
        "groups": dict(sorted(groups.items(), key=lambda entry: -entry[1]["users"])),
    }


def dropped_by_length(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, cutter: HistoryCutter, max_length: int | None
) -> dict[str, Any]:
    """How many pairs RewardTrainer would leave out, because a response with its prompt and history is longer than `max_length`.

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
        `dict`: `max_length`, and under `groups` the numbers `pairs` and `dropped` of each.
    """
    groups: dict[str, dict[str, int]] = {name: {"pairs": 0, "dropped": 0} for name in sorted(set(rows["group"][:]))}
    for row in render_history(rows, cutter):
        length = max(len(tokenize_row(tokenizer, row, side)) for side in ("chosen", "rejected"))
        groups[row["group"]]["pairs"] += 1
        groups[row["group"]]["dropped"] += max_length is not None and length > max_length
    return {"max_length": max_length, "groups": groups}
