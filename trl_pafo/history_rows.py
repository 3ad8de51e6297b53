"""Which past pairs a row shows: the user's own, or, for a counterfactual row, those of a user of another group."""

import random
from collections import Counter, defaultdict
from typing import Any

from datasets import Dataset, concatenate_datasets

from trl_pafo.errors import DataError
from trl_pafo.history import HISTORY_FIELDS, content_key


def attach_history(dataset: Dataset, num_history: int, past_only: bool = True, min_history: int = 1) -> Dataset:
    """Add the `history` column: for each row, the newest `num_history` other pairs of the same user, newest first.

    The rows of a user are taken to be in the order of time. A history never holds a pair with the prompt of its own row,
    so neither the evaluated pair nor its prompt's answer can leak into it.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `prompt`, `chosen`, `rejected`, `user`.
        num_history (`int`):
            k, the largest number of past pairs a row gets.
        past_only (`bool`, *optional*, defaults to `True`):
            Take only earlier pairs of the user. If `False`, the search goes on cyclically with the user's latest pairs
            (leave one out), so that a training set loses no rows.
        min_history (`int`, *optional*, defaults to `1`):
            Rows with fewer past pairs only serve as history and are left out; for a user who never has so many, rows with
            as many as the user ever has are kept.

    Returns:
        [`~datasets.Dataset`]: The rows with a history, unless `num_history` is 0.

    Raises:
        DataError: If a user has no pair with a history.
    """
    if num_history == 0:
        return dataset.add_column("history", [[] for _ in range(len(dataset))])
    columns = dataset.select_columns([*HISTORY_FIELDS, "user"]).to_dict()
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, user in enumerate(columns["user"]):
        rows_of[user].append(row)
    keys = [content_key(prompt) for prompt in columns["prompt"]]
    histories: list[list[dict[str, Any]]] = [[] for _ in keys]
    for rows in rows_of.values():
        for place, row in enumerate(rows):
            others = rows[:place][::-1] + ([] if past_only else rows[place + 1 :][::-1])
            past = [other for other in others if keys[other] != keys[row]][:num_history]
            histories[row] = [{name: columns[name][other] for name in HISTORY_FIELDS} for other in past]
    without = [user for user, rows in rows_of.items() if not any(histories[row] for row in rows)]
    if without:
        raise DataError(
            f"{len(without)} of {len(rows_of)} users have no history (the first: {without[0]!r}): each needs at least two "
            "pairs on different prompts. Leave these users out, or set num_history to 0."
        )
    kept = []
    for rows in rows_of.values():
        needed = max(1, min(min_history, max(len(histories[row]) for row in rows)))
        kept += [row for row in rows if len(histories[row]) >= needed]
    kept.sort()
    return dataset.select(kept).add_column("history", [histories[row] for row in kept])


def counterfactual_rows(dataset: Dataset, groups: list[str], share: float, seed: int) -> Dataset:
    """`dataset` and, below it, its pairs under histories of users of the other groups. (Ours, not the paper's.)

    A new row keeps prompt, chosen and rejected, takes history, `user` and `group` from a donor row of another group, and
    has `has_label` false: nobody of that group judged the pair, only that group's teacher can. A donor whose history
    holds the prompt of the pair is never taken.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `prompt`, `chosen`, `rejected`, `user`, `group`, `history`; a history that is rendered already (in
            `chat_template_kwargs`) goes with it.
        groups (`list[str]`):
            The groups.
        share (`float`):
            Share of each group's rows that get a row under each other group, in [0, 1]. At 1, every row does.
        seed (`int`):
            Seed of the choice of rows and donors.
    """
    if share == 0:
        return dataset.add_column("has_label", [True] * len(dataset))
    rng = random.Random(seed)
    columns = dataset.select_columns(["group", "history", "prompt"]).to_dict()
    keys = [content_key(prompt) for prompt in columns["prompt"]]
    history_keys = [{content_key(entry["prompt"]) for entry in history} for history in columns["history"]]
    rows_of = {group: [row for row, g in enumerate(columns["group"]) if g == group] for group in groups}
    sources: list[int] = []
    donors: list[int] = []
    for group in groups:
        picked = rng.sample(rows_of[group], round(share * len(rows_of[group])))
        for other in groups:
            if other == group:
                continue
            for row in picked:
                donor = _draw_donor(rng, rows_of[other], history_keys, keys[row])
                if donor is not None:
                    sources.append(row)
                    donors.append(donor)
    taken_from_donor = ["history", "chat_template_kwargs", "user", "group", "support_rate"]
    pair_columns = [name for name in dataset.column_names if name not in taken_from_donor]
    donor_columns = [name for name in dataset.column_names if name in taken_from_donor]
    new = concatenate_datasets(
        [dataset.select(sources).select_columns(pair_columns), dataset.select(donors).select_columns(donor_columns)], axis=1
    )
    return concatenate_datasets(
        [
            dataset.add_column("has_label", [True] * len(dataset)),
            new.add_column("has_label", [False] * len(new)),
        ]
    )


def _draw_donor(rng: random.Random, rows: list[int], history_keys: list[set[str]], key: str) -> int | None:
    for _ in range(50):
        donor = rng.choice(rows)
        if history_keys[donor] and key not in history_keys[donor]:
            return donor
    # Rare prompts in long histories: look at all before giving up.
    fitting = [row for row in rows if history_keys[row] and key not in history_keys[row]]
    return rng.choice(fitting) if fitting else None


def count_by_group(dataset: Dataset) -> Counter[str]:
    """Number of rows of each group; all rows under `"all"` without a `group` column."""
    return Counter(dataset["group"]) if "group" in dataset.column_names else Counter(all=len(dataset))
