"""Pairs shown under histories of users of other groups."""

import random

import numpy as np
from datasets import Dataset, concatenate_datasets

from trl_pafo.data.label_columns import normalize_columns
from trl_pafo.data.overlap import PairNumbers, telling_fields
from trl_pafo.data.rows import read_rows


def counterfactual_rows(dataset: Dataset, groups: list[str], share: float, seed: int) -> Dataset:
    """`dataset` and, below it, its pairs under histories of users of the other groups. (Not from the paper.)

    A new row keeps prompt, chosen and rejected, takes history, `user` and `group` from a donor row of another group, and
    has `has_label` false: nobody of that group judged the pair, only that group's teacher can. A donor whose history
    holds the prompt of the pair (a response of it, where all pairs have one prompt) is never taken.

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
    dataset = normalize_columns(dataset, "The pairs", ["group"])
    labeled = dataset.add_column("has_label", np.ones(len(dataset), dtype=bool))
    rng = random.Random(seed)
    numbers = PairNumbers(telling_fields(dataset))
    own: list[tuple[int, ...]] = []
    seen: list[set[int]] = []
    for row in read_rows(dataset, ["history", *numbers.fields]):
        own.append(numbers(row))
        seen.append({number for past in row["history"] or [] for number in numbers(past)})
    of_group = np.array(dataset.with_format(None)["group"][:], dtype=object)
    rows_of = {group: np.flatnonzero(of_group == group).tolist() for group in groups}

    def draw(donors: list[int], row: int) -> int | None:
        fits = lambda donor: seen[donor] and seen[donor].isdisjoint(own[row])  # noqa: E731
        for _ in range(50):
            if fits(donor := rng.choice(donors)):
                return donor
        # Rare prompts in long histories: look at all before giving up.
        fitting = [donor for donor in donors if fits(donor)]
        return rng.choice(fitting) if fitting else None

    drawn: list[tuple[int, int]] = []
    for group in groups:
        picked = rng.sample(rows_of[group], round(share * len(rows_of[group])))
        for other in (name for name in groups if name != group):
            donors = [(row, draw(rows_of[other], row)) for row in picked]
            drawn += [(row, donor) for row, donor in donors if donor is not None]
    if not drawn:
        return labeled
    sources, donors = np.array(drawn).T
    names = [n for n in ("history", "chat_template_kwargs", "user", "group", "support_rate") if n in dataset.column_names]
    new = concatenate_datasets(
        [dataset.select(sources).remove_columns(names), dataset.select_columns(names).select(donors)], axis=1
    )
    new = new.add_column("has_label", np.zeros(len(new), dtype=bool)).select_columns(labeled.column_names)
    return concatenate_datasets([labeled, new])
