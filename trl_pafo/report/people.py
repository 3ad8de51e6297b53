"""Who is in which group, and how sure that is: the section of a report, and the picture."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from trl_pafo.data.people import GROUPS, RATES, crossed, described_columns, groups_by_size, sureness_sentence
from trl_pafo.metrics.plotting import FONT, GROUP_COLORS, TEXT, add_axes, new_figure, short
from trl_pafo.report.record import Record
from trl_pafo.report.sections import Picture, Section, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = np.linspace(0, 1, 21)


def draw_people(people: pd.DataFrame, groups_from: str) -> "Figure | None":
    """People of each group by what it rests on: the probability of the group, or the rate that groups are cut at.

    Args:
        people (`pandas.DataFrame`):
            What [`~trl_pafo.data.people.people_of`] returned.
        groups_from (`str`):
            As in [`~trl_pafo.data.people.sureness_sentence`].

    Returns:
        The figure; `None` where there is one group, or nothing is known but the group.
    """
    found, names = bool(people["posterior"].notna().any()), groups_by_size(people)
    if len(names) < 2 or not (found or groups_from in RATES):
        return None
    column, what = ("posterior", "probability of the group") if found else ("support_rate", RATES[groups_from])
    figure = new_figure(height=0.7 + 1.1 * len(names))
    for place, name in enumerate(names):
        own = people[people["group"] == name]
        values, is_last = own[column].dropna(), place == len(names) - 1
        axes = add_axes(figure, what if is_last else "", "people", place=(len(names), 1, place + 1))
        axes.hist(values, bins=_BINS.tolist(), color=GROUP_COLORS[place % len(GROUP_COLORS)])
        axes.set_xlim(0, 1)
        axes.locator_params(axis="y", integer=True, nbins=4)
        axes.tick_params(labelbottom=is_last)
        known = "" if len(values) == len(own) else f"{len(values):,} of "
        style: dict[str, Any] = {"fontsize": FONT, "color": TEXT, "loc": "left", "parse_math": False}
        axes.set_title(f"{short(name, 28)}: {known}{len(own):,} people", **style)
    return figure


def people(record: Record) -> Section:
    """How many users each group rests on, how sure it is, and what they are."""
    section, found = Section("people", "Who is in which group"), record.people
    if found is None:
        section.missing.append(f"Who is in which group: the data were prepared without {GROUPS}. `trl-pafo prepare` writes it.")
        return section
    groups_from = record.data["groups"]
    section.text.append(f"The group of each user is in data/{GROUPS}. {sureness_sentence(found, groups_from)}")
    names = groups_by_size(found)
    splits = {
        name: found["split"].str.split("+").map(lambda own, name=name: name in own) for name in ("train", "validation", "test")
    }
    splits = {name: among for name, among in splits.items() if among.any()}
    rows = [
        [record.group_title(name), *(number(int((among & (found["group"] == name)).sum())) for among in splits.values())]
        + [number(int(count(found.loc[found["group"] == name, "pairs"]))) for count in (len, sum)]
        for name in names
    ]
    section.add_table(["group", *(f"{name} users" for name in splits), "all users", "pairs"], rows)
    for column in described_columns(found):
        counts = crossed(found, column)
        rows = [
            [str(value), *map(number, of_value)] for value, of_value in zip(counts.index, counts.to_numpy().tolist(), strict=True)
        ]
        section.add_table([column, *map(record.group_title, counts)], rows, "Users of each group.")
    if figure := draw_people(found, groups_from):
        caption = "How many people have which number; each group has its own scale."
        if found["posterior"].notna().any():
            caption += " Of training users it comes from the pairs that the groups were found in, and is surer than it should be."
        section.pictures.append(Picture("people", "How sure the groups are", caption, figure))
    return section
