"""Who is in which group: the table of users against plain loops, and what is said of it."""

import csv

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from trl_pafo.data.people import (
    GROUPS,
    SEVERAL,
    add_about,
    crossed,
    crossing_sentences,
    people_of,
    read_people,
    sureness_sentence,
    write_people,
)

USERS = [f"u{number}" for number in range(12)]
AGES = dict(zip(USERS, [70, 18, 20, 22, 31, 35, 40, 44, 52, 58, 61], strict=False))  # the last says none


def rows_of(users, pairs=1):
    rows = [{"user": u, "group": "few" if USERS.index(u) % 3 == 0 else "many", "support_rate": 0.25} for u in users]
    return Dataset.from_list([row for row in rows for _ in range(pairs)])


@pytest.fixture
def splits():
    splits = DatasetDict(train=rows_of(USERS[:9], 3), validation=rows_of(USERS[6:9]), test=rows_of(USERS[9:], 2))
    country = {user: "FR" if number < 5 else "NA" for number, user in enumerate(USERS)} | {"u3": SEVERAL}
    return add_about(splits, {"age": {u: str(a) for u, a in AGES.items()}, "country": country, "pairs": {"u0": "007"}})


def test_a_row_a_user_survives_the_file(splits, tmp_path):
    posterior = {user: 1 / (1 + number) for number, user in enumerate(USERS[:10])}
    people = people_of(splits, posterior)
    write_people(people, tmp_path)
    again = read_people(tmp_path)
    with open(tmp_path / GROUPS, newline="") as file:
        lines = list(csv.DictReader(file))
    for table in (people.to_dict("records"), again.to_dict("records"), lines):
        assert [row["user"] for row in table] == USERS
        for number, row in enumerate(table):
            name = row["user"]
            rows = [(split, r) for split, own in splits.items() for r in own if r["user"] == name]
            assert row["group"] == rows[0][1]["group"]
            assert int(row["pairs"]) == len(rows)
            assert row["split"] == "+".join(dict.fromkeys(split for split, _ in rows))
            assert float(row["support_rate"]) == 0.25
            if number < 10:
                assert float(row["posterior"]) == pytest.approx(1 / (1 + number), abs=1e-4)
            assert row["country"] == (SEVERAL if name == "u3" else "FR" if number < 5 else "NA")
            assert (row["age"] or None) == (str(AGES[name]) if name in AGES else None)
            assert (row["pairs (described)"] or None) == ("007" if name == "u0" else None)
    assert [np.isnan(value) for value in again["posterior"]] == [False] * 10 + [True] * 2
    assert list(people_of({"train": rows_of(USERS)})) == ["user", "group", "posterior", "support_rate", "pairs", "split"]


def test_values_are_counted_by_group(splits):
    people = people_of(splits)
    counts = crossed(people, "country")
    assert list(counts) == ["many", "few"]  # the largest first
    assert list(counts.index) == ["NA", "FR", SEVERAL]
    for value in counts.index:
        for group in counts:
            expected = sum(row["country"] == value and row["group"] == group for row in people.to_dict("records"))
            assert counts.loc[value, group] == expected
    ages = crossed(people, "age")  # eleven numbers, cut at their quartiles
    assert list(ages.index) == ["18 to 22", "31 to 40", "44 to 52", "58 to 70", "not said"]
    for value in ages.index[:-1]:
        low, high = map(int, value.split(" to "))
        inside = [u for u, age in AGES.items() if low <= age <= high]
        assert ages.loc[value].to_dict() == {
            group: sum((USERS.index(u) % 3 == 0) == (group == "few") for u in inside) for group in ages
        }
    assert ages.to_numpy().sum() == len(USERS)
    assert (
        crossing_sentences(people)[1]
        == "country of 8 many users: NA (5), FR (3); of 4 few users: NA (2), FR (1), several values (1)."
    )


def test_of_many_texts_the_most_frequent_ones_are_named():
    users = [f"u{number}" for number in range(30)]
    towns = {user: f"town {min(number, 10)}" if number < 29 else "" for number, user in enumerate(users)}
    rows = Dataset.from_list([{"user": user, "group": "all", "support_rate": 1.0} for user in users])
    counts = crossed(people_of(add_about(DatasetDict(train=rows), {"town": {u: t for u, t in towns.items() if t}})), "town")[
        "all"
    ]
    assert counts["town 10"] == 19
    assert list(counts.index[-2:]) == ["others", "not said"]
    assert (len(counts), counts["others"], counts["not said"], counts.sum()) == (9, 4, 1, 30)


def test_how_sure_it_is_is_said_or_that_it_is_not_known(splits):
    people = people_of(splits, {user: 0.95 if number % 2 else 0.6 for number, user in enumerate(USERS[:9])})
    assert sureness_sentence(people, "training pairs") == (
        "In their group with a probability of 0.9 or more: 3 of 6 many users, 1 of 3 few users. Of 3 users the data name the group, without "
        "a probability."
    )
    unknown = people_of(splits)
    assert "a threshold of the agreement with others" in sureness_sentence(unknown, "agreement")
    assert sureness_sentence(unknown, "data") == "No probability of a group is known: the groups come with the data."
    assert sureness_sentence(unknown[unknown["group"] == "few"], "pairs") == "Everybody is in one group."
