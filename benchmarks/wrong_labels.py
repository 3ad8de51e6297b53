"""A data set with wrong labels: users named as of the other group, or pairs of the minority the wrong way around.

    python benchmarks/wrong_labels.py --wrong groups --share 0.2 --output_dir runs/wrong_groups_.2 --source styles --train_users 160 --context_pairs 1
    trl-pafo run --data_path runs/wrong_groups_.2 --context_pairs 1 --num_history 1 ...

Training and validation have the errors, as where one annotator labels both; test has none. The data are any source with two groups, with its options
as `trl-pafo run` takes them, and what is written is a folder for `--data_path`. `--share` is that of the users of each group, or of the pairs of the
group with the fewest users.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from trl import TrlParser

from trl_pafo.data.groups import largest_and_smallest
from trl_pafo.data.sources import DataArguments, load_source
from trl_pafo.data.sources.splits import one_value_per_user
from trl_pafo.errors import ConfigError
from trl_pafo.storage.files import new_folder

KINDS = ("groups", "minority_pairs")


@dataclass
class WrongArguments:
    wrong: str = "groups"
    share: float = 0.1
    seed: int = 0
    output_dir: str | None = None


def name_wrongly(rows: Dataset, share: float, rng: np.random.Generator) -> Dataset:
    """As many users of each of two groups as `share` says, named as of the other one."""
    group_of = one_value_per_user(rows, "group")
    names = sorted(set(group_of.values()))
    if len(names) != 2:
        raise ConfigError(
            f"Users can be named as of the other group where there are two, and here are {len(names)}: {', '.join(names)}."
        )
    named = dict(group_of)
    for name, other in (names, names[::-1]):
        users = [user for user, group in group_of.items() if group == name]
        named |= dict.fromkeys(rng.permutation(users)[: round(share * len(users))].tolist(), other)
    return rows.remove_columns("group").add_column("group", [named[user] for user in rows["user"]])


def turn_around(rows: Dataset, group: str, share: float, rng: np.random.Generator) -> Dataset:
    """Chosen and rejected exchanged in `share` of the pairs of a group."""
    own = np.flatnonzero(np.array(rows["group"]) == group)
    wrong = set(rng.permutation(own)[: round(share * len(own))].tolist())

    def turned(row: dict[str, Any], number: int) -> dict[str, Any]:
        return {"chosen": row["rejected"], "rejected": row["chosen"]} if number in wrong else row

    return rows.map(turned, with_indices=True)


def main() -> None:
    options, data = TrlParser([WrongArguments, DataArguments]).parse_args_and_config()
    if options.wrong not in KINDS or not 0 <= options.share < 0.5 or not options.output_dir:
        raise ConfigError(f"Give --output_dir, a new folder, --wrong, one of {', '.join(KINDS)}, and --share in [0, 0.5).")
    splits, rng = load_source(data), np.random.default_rng(options.seed)
    _, minority = largest_and_smallest(splits["train"]["group"], splits["train"]["user"])
    wrong = DatasetDict()
    for split, rows in splits.items():
        # The support rate is that of the right group.
        rows = rows.select_columns([name for name in rows.column_names if name != "support_rate"])
        if split != "test":
            by_users = options.wrong == "groups"
            rows = name_wrongly(rows, options.share, rng) if by_users else turn_around(rows, minority, options.share, rng)
        wrong[split] = rows
    with new_folder(Path(options.output_dir)) as folder:
        wrong.save_to_disk(folder)
    print(f"Pairs with wrong labels: {options.output_dir}")


if __name__ == "__main__":
    main()
