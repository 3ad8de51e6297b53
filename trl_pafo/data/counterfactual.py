"""Pairs shown under histories of users of other groups."""

import logging
import random

import numpy as np
import pyarrow as pa
from datasets import Dataset, Value, concatenate_datasets

from trl_pafo.data.arrow import Numbers, Rows, build_rows, column, joined, lengths_of
from trl_pafo.data.history import content_keys, past_prompts
from trl_pafo.data.label_columns import normalize_columns

logger = logging.getLogger(__name__)


def counterfactual_rows(dataset: Dataset, groups: list[str], share: float, seed: int) -> Dataset:
    """`dataset` and, below it, its pairs under histories of users of the other groups. (Not from the paper.)

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
    dataset = normalize_columns(dataset, "The pairs", ["group"])
    if share == 0:
        return dataset.add_column("has_label", [True] * len(dataset))
    rng = random.Random(seed)
    prompts = Numbers()
    own, seen, lengths = [], [], []
    for rows in Rows(dataset, ["history", "prompt"]):
        history = column(rows, "history")
        own.append(prompts(content_keys(column(rows, "prompt"))))
        seen.append(prompts(content_keys(past_prompts(history))))
        lengths.append(lengths_of(history))
    histories = _Histories(joined(seen).tolist(), [0, *np.cumsum(joined(lengths)).tolist()])
    keys = joined(own).tolist()
    of_group = np.array(dataset["group"][:], dtype=object)
    rows_of = {group: np.flatnonzero(of_group == group).tolist() for group in groups}
    sources: list[int] = []
    donors: list[int] = []
    for group in groups:
        picked = rng.sample(rows_of[group], round(share * len(rows_of[group])))
        for other in groups:
            if other == group:
                continue
            for row in picked:
                donor = _draw_donor(rng, rows_of[other], histories, keys[row])
                if donor is not None:
                    sources.append(row)
                    donors.append(donor)
    labeled = dataset.add_column("has_label", np.ones(len(dataset), dtype=bool))
    if not sources:
        return labeled
    taken_from_donor = ["history", "chat_template_kwargs", "user", "group", "support_rate"]
    pair_rows = Rows(dataset, [name for name in dataset.column_names if name not in taken_from_donor])
    donor_rows = Rows(dataset, [name for name in dataset.column_names if name in taken_from_donor])

    def build(plan: pa.Table) -> pa.Table:
        new = pair_rows.take(np.asarray(column(plan, "source")))
        donor = donor_rows.take(np.asarray(column(plan, "donor")))
        for name in donor.column_names:
            new = new.append_column(name, donor.column(name))
        return new.append_column("has_label", pa.repeat(False, len(new))).select(list(features))

    features = {**dataset.features, "has_label": Value("bool")}
    new = build_rows(
        dataset, pa.table({"source": sources, "donor": donors}), build, features, "Showing pairs under other histories"
    )
    return concatenate_datasets([labeled, new])


class _Histories:
    """Prompts, as numbers, in the history of each row."""

    def __init__(self, prompts: list[int], ends: list[int]):
        self._prompts = prompts
        self._ends = ends

    def fits(self, row: int, prompt: int) -> bool:
        """Whether a row has a history, and none of its pairs is on the prompt."""
        start, end = self._ends[row], self._ends[row + 1]
        return start < end and prompt not in self._prompts[start:end]


def _draw_donor(rng: random.Random, rows: list[int], histories: _Histories, prompt: int) -> int | None:
    for _ in range(50):
        donor = rng.choice(rows)
        if histories.fits(donor, prompt):
            return donor
    # Rare prompts in long histories: look at all before giving up.
    fitting = [row for row in rows if histories.fits(row, prompt)]
    return rng.choice(fitting) if fitting else None
