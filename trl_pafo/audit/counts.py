"""How many users, pairs and groups there are, and how much support they have."""

from typing import Any

import pandas as pd
from datasets import Dataset

from trl_pafo.data.messages import content_key


def count_all(rows: Dataset, users: pd.DataFrame) -> dict[str, Any]:
    """Numbers of pairs, users and prompts, overall and by group (the largest first), and the support rate of each user of a group.

    Args:
        rows ([`~datasets.Dataset`]):
            The pairs.
        users (`pandas.DataFrame`):
            Their users, as [`~trl_pafo.data.people.people_of`] has them.
    """
    groups: dict[str, dict[str, Any]] = {
        str(name): {
            "users": len(members),
            "share_of_users": len(members) / len(users),
            "pairs": int(members["pairs"].sum()),
            "support_rates": sorted(members["support_rate"].tolist()),
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
