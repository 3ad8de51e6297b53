"""Who is in which group: the counts of the section, and how sure they are as a picture."""

import numpy as np

from trl_pafo.report.people import draw_people, people
from trl_pafo.report.sections import number


def with_probabilities(record):
    users = record.people["user"]
    record.people["posterior"] = np.linspace(0.5, 1, len(users))
    record.data["groups"] = "pairs"
    return record


def test_users_are_counted_by_split_and_what_they_are(record):
    record.people["country"] = ["FR", "DE"] * 8 + [None]
    section = people(record)
    users, country = section.tables
    assert users["header"] == ["group", "test users", "all users", "pairs"]
    assert users["rows"] == [["majority", *map(number, (12, 12, 48))], ["minority", *map(number, (5, 5, 20))]]
    assert country["header"] == ["country", "majority", "minority"]
    by_value = {row[0]: row[1:] for row in country["rows"]}
    assert by_value == {"DE": [number(6), number(2)], "FR": [number(6), number(2)], "not said": [number(0), number(1)]}
    assert "No probability of a group is known: the groups come with the data." in section.text[0]
    assert not section.pictures
    record.people = None
    assert "without groups.csv" in people(record).missing[0]


def test_the_picture_shows_every_user_by_its_probability(record):
    record = with_probabilities(record)
    [picture] = people(record).pictures
    assert "surer than it should be" in picture.caption
    for axes, group in zip(picture.figure.axes, ("majority", "minority"), strict=True):
        values = record.people.loc[record.people["group"] == group, "posterior"]
        for bar in axes.patches:
            low = round(bar.get_x(), 6)
            high = round(low + 0.05, 6)
            inside = ((values >= low) & ((values < high) | (high == 1))).sum()
            assert bar.get_height() == inside
        assert axes.get_ylabel() == "people"
        assert axes.get_title(loc="left") == f"{group}: {len(values)} people"
    assert picture.figure.axes[-1].get_xlabel() == "probability of the group"


def test_a_rate_is_drawn_where_groups_are_cut_from_it_and_nothing_where_they_are_given(record):
    found = record.people
    figure = draw_people(found, "agreement")
    assert figure.axes[-1].get_xlabel() == "agreement with others"
    assert [sum(bar.get_height() for bar in axes.patches) for axes in figure.axes] == [12, 5]
    assert draw_people(found, "data") is None
    assert draw_people(found[found["group"] == "minority"], "agreement") is None
