"""What is held out of people's pairs: by itself as the data allow, or as asked for, and nothing of it in training."""

import re
from collections import defaultdict

import pytest
from datasets import Dataset, DatasetDict
from helpers.sources import check_splits, write_lines

from trl_pafo.data.attaching import attach_history
from trl_pafo.data.checks import check_apart
from trl_pafo.data.sources import DataArguments, load_source
from trl_pafo.data.sources.holding_out import hold_out
from trl_pafo.data.sources.splits import facts_of
from trl_pafo.errors import ConfigError, DataError

GROUPS = ("many", "many", "many", "few")


def people(num_users, num_prompts, shared=True, first=0):
    """Each judges so many prompts: the same as all others, or prompts of their own."""
    return [
        {
            "prompt": f"q{n}" if shared else f"u{u} asks {n}",
            "chosen": f"yes {u}",
            "rejected": "no",
            "user": f"u{u}",
            "group": GROUPS[u % 4],
        }
        for u in range(first, first + num_users)
        for n in range(num_prompts)
    ]


@pytest.fixture
def of(tmp_path):
    def load_rows(rows, test=None, **options):
        if test is not None:
            options["test_data_path"] = str(write_lines(tmp_path / "test.jsonl", test))
        data = DataArguments(source="files", data_path=str(write_lines(tmp_path / "pairs.jsonl", rows)), **options)
        return load_source(data, context_pairs=2)

    return load_rows


def held_out(splits):
    [how] = {facts_of(rows)["hold_out"] for rows in splits.values()}
    return how


def judged(rows):
    return {(row["user"], row["prompt"]) for row in rows}


@pytest.mark.parametrize(
    ("rows", "how", "reason"),
    [
        (people(40, 5), "users", "since people share their prompts: 40 of 40 pairs of test people are on prompts of training"),
        (people(40, 5, shared=False), "users_and_prompts", "since 40 of 40 pairs of test people are on prompts"),
        (people(12, 8), "pairs", r"since a fifth of 12 people are 2, of whom nothing could be shown \(6 at least\)"),
        (people(12, 3), "users", "since people share their prompts"),
    ],
)
def test_the_data_decide_and_it_is_said_why(of, caplog, rows, how, reason):
    with caplog.at_level("INFO"):
        splits = of(rows)
    assert held_out(splits) == how
    check_splits(splits)
    [line] = [record.message for record in caplog.records if record.message.startswith("Held out: ")]
    assert f"(--hold_out {how})" in line
    assert re.search(reason, line)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("how", ["users_and_prompts", "users", "pairs"])
def test_every_way_can_be_asked_for_and_keeps_apart_what_it_says(of, how, shared):
    rows = people(40, 8, shared)
    splits = of(rows, hold_out=how)
    again = of(rows, hold_out=how, population_seed=int(shared))["test"].to_list()
    assert (again == splits["test"].to_list()) == (not shared)
    assert held_out(splits) == how
    check_splits(splits)
    train, test = splits["train"], splits["test"]
    users, prompts = ({name: set(part[column]) for name, part in splits.items()} for column in ("user", "prompt"))
    assert (users["train"] == users["test"]) if how == "pairs" else not users["train"] & users["test"]
    assert len(users["test"]) == (40 if how == "pairs" else 8)
    assert not judged(train) & judged(test)
    if how == "users_and_prompts":
        assert not prompts["train"] & prompts["test"]
        assert len(prompts["train"]) == (6 if shared else 8 * 32)  # a quarter of the shared ones is held out
    else:
        assert bool(prompts["train"] & prompts["test"]) == shared
    if how == "pairs":
        assert len(test) == 2 * 40
        assert len(train) == 6 * 40
        assert len(set(test["unit"])) == 80
    if how == "pairs" or (how == "users_and_prompts" and shared):
        known = {(row["user"], row["prompt"]) for row in rows} - judged(test)
        for row in test:
            assert len(row["history"]) == 2
            assert all((row["user"], past["prompt"]) in known and past["prompt"] != row["prompt"] for past in row["history"])
            assert all(past["chosen"] == row["chosen"] for past in row["history"])  # of the same person
    else:
        assert "history" not in test.column_names


def test_the_newest_pairs_are_held_out_where_times_are_known(of):
    rows = [{**row, "time": 100 - n} for n, row in enumerate(people(10, 6))]
    splits = of(rows, hold_out="pairs")
    assert judged(splits["test"]) == {(f"u{u}", "q0") for u in range(10)}
    assert [past["prompt"] for past in splits["test"][0]["history"]] == ["q1", "q2"]


def test_all_pairs_of_a_person_on_one_prompt_stay_together(of):
    rows = [
        {"user": f"u{u}", "prompt": f"q{p}", "response": f"r{r}", "score": (u + p * r) % 5, "group": "g"}
        for u in range(8)
        for p in range(5)
        for r in range(4)
    ]
    splits = of(rows, hold_out="pairs")
    check_splits(splits)
    units = defaultdict(set)
    for row in splits["test"]:
        units[row["unit"]].add((row["user"], row["prompt"]))
    assert len(units) == 8
    assert all(len(own) == 1 for own in units.values())
    assert len(splits["test"]) > 30


class TestGivenTestPairs:
    def test_the_people_and_prompts_decide(self, of):
        train = people(12, 4)
        for test, how in ((people(8, 4, first=20), "users"), (people(8, 4, False, 20), "users_and_prompts")):
            splits = of(train, test)
            assert (held_out(splits), len(splits["test"])) == (how, 32)
        known = [{**row, "prompt": f"new {row['prompt']}"} for row in people(12, 2)]
        splits = of(train, [*known, *train[:3]])
        assert (held_out(splits), len(splits["test"])) == ("pairs", 24)  # without those of training
        check_splits(splits)

    def test_only_some_are_known(self, of, caplog):
        train, test = people(12, 4), [{**row, "prompt": f"new {row['prompt']}"} for row in people(12, 2, first=10)]
        with pytest.raises(DataError, match=r"2 of 12 users of the test data are in .*: --hold_out pairs\."):
            of(train, test)
        assert set(of(train, test, hold_out="pairs")["test"]["user"]) == {"u10", "u11"}
        assert "20 of 24 test pairs are left out, whose people have no training pairs" in caplog.text
        with pytest.raises(DataError, match="None of 16 test pairs is left without those whose prompts occur in training"):
            of(train, people(4, 4, first=20), hold_out="users_and_prompts")


class TestFewPairs:
    def test_they_are_left_out_and_counted_by_group(self, of, caplog):
        rows = [*people(40, 5), *people(2, 1, first=40), *people(2, 1, first=43)]
        with caplog.at_level("INFO"):
            splits = of(rows)
        assert "4 of 44 users were dropped, who have fewer than 2 pairs or pairs on one prompt only: few 1, many 3" in caplog.text
        assert {user for part in splits.values() for user in part["user"]} == {f"u{u}" for u in range(40)}
        with pytest.raises(DataError, match="None of 44 users has 9 pairs"):
            of(rows, min_pairs=9)

    def test_everybody_stays_where_that_is_asked_for(self, of):
        splits = of([*people(40, 5), *people(4, 1, first=40)], min_pairs=1)
        assert len({user for part in splits.values() for user in part["user"]}) == 44
        splits = of([*people(10, 5), *people(4, 1, first=40)], hold_out="pairs", min_pairs=1)
        assert {f"u{u}" for u in range(40, 44)} <= set(splits["train"]["user"])  # nothing of theirs can be held out

    def test_nobody_has_three_prompts(self, of):
        with pytest.raises(DataError, match="Nobody judged three prompts"):
            of(people(10, 2), hold_out="pairs")


def test_prompts_held_out_that_leave_nothing(of):
    with pytest.raises(DataError, match=r"With 5 of 5 prompts held out, training or test has no pairs\. Move test_prompt_share"):
        of(people(40, 5), hold_out="users_and_prompts", test_prompt_share=0.95)


def test_one_prompt_for_all_is_told_apart_by_responses(of):
    rows = [
        {"prompt": "Roads", "chosen": f"s{(u + n) % 9}", "rejected": f"t{(3 * u + n) % 9}", "user": f"u{u}", "group": "g"}
        for u in range(40)
        for n in range(6)
    ]
    for how in ("users", "users_and_prompts"):
        splits = of(rows, hold_out=how, test_prompt_share=0.5)
        check_splits(splits)
        said = [{text for row in part for text in (row["chosen"], row["rejected"])} for part in splits.values()]
        assert bool(said[0] & said[1]) == (how != "users_and_prompts")


def test_ways_that_are_none():
    with pytest.raises(ConfigError, match="`hold_out` must be one of users_and_prompts, users, pairs, got prompts"):
        DataArguments(hold_out="prompts")
    with pytest.raises(ConfigError, match="--hold_out, --min_pairs: no effect on the source 'styles'"):
        load_source(DataArguments(hold_out="users", min_pairs=3))


def test_what_leaks_is_found():
    train = attach_history(Dataset.from_list(people(4, 4)), 2, past_only=False)
    test = attach_history(Dataset.from_list(people(4, 4, first=4)), 1)
    check_apart(train, test, "users")
    for how in ("users_and_prompts", "pairs", "users"):
        with pytest.raises(DataError, match="share 4 users"):
            check_apart(train, train.remove_columns("history"), how)
    with pytest.raises(DataError, match="share 0 users and 3 prompts"):
        check_apart(train, test, "users_and_prompts")
    # A pair that is judged in the test of its user, in a history of the user's training rows alone.
    q0, rest = (train.filter(lambda row, first=first: (row["prompt"] == "q0") == first) for first in (True, False))
    with pytest.raises(DataError, match="share 4 users and 4 prompts"):
        check_apart(rest, q0.remove_columns("history"), "pairs")
    check_apart(attach_history(rest.remove_columns("history"), 2, past_only=False), q0.remove_columns("history"), "pairs")
    knows = test.map(lambda row: {"history": [{name: row[name] for name in ("prompt", "chosen", "rejected")}]})
    with pytest.raises(DataError, match="12 test rows have a history with their own prompt"):
        check_apart(train, knows, "users")


def test_rows_that_are_given_histories_keep_them():
    past = [{"prompt": "an old one", "chosen": "yes", "rejected": "no"}]
    rows = Dataset.from_list([{**row, "history": past} for row in people(10, 5)])
    splits = hold_out(rows, None, False, DataArguments(source="files", hold_out="pairs", context_pairs=2))
    assert splits["test"]["history"][:] == [past] * 10


class TestValidation:
    """Pairs that are given to choose by."""

    @pytest.fixture
    def of(self, tmp_path):
        def load_splits(train, validation, test, **options):
            splits = {"train": train, "validation": validation, "test": test}
            DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(tmp_path / "all")
            return load_source(DataArguments(data_path=str(tmp_path / "all"), **options), context_pairs=1)

        return load_splits

    @pytest.mark.parametrize("shared", [True, False])
    def test_of_new_people(self, shared, of, caplog):
        caplog.set_level("INFO")
        splits = of(people(8, 4, shared), people(4, 4, shared, first=8), people(4, 4, shared, first=12))
        assert set(splits["validation"]["user"]) == {"u8", "u9", "u10", "u11"}
        assert set(splits["validation"].column_names) == set(splits["train"].column_names)
        assert "Validation: the 16 pairs of 4 people of the split validation, new people." in caplog.text

    @pytest.mark.parametrize(
        ("validation", "reason"),
        [
            (people(4, 4, first=6), "2 of its 4 people are in training, and the others are not"),
            (people(4, 4, first=12), "4 of its 4 people are test people"),
            (people(4, 4), "its people are in training, and it has no column history"),
            ([{**row, "group": "new"} for row in people(4, 4, first=20)], "training has no group 'new'"),
            (
                [{k: v for k, v in row.items() if k != "group"} for row in people(4, 4, first=20)],
                "only one of .* the column group",
            ),
        ],
    )
    def test_that_cannot_be_used_it_is_said_why(self, validation, reason, of, caplog):
        splits = of(people(8, 4), validation, people(4, 4, first=12))
        assert set(splits) == {"train", "test"}
        assert re.search(f"the split validation is not used, as .*{reason}", caplog.text)

    def test_of_training_people_on_prompts_of_training_or_of_the_test(self, of, caplog):
        past = [{"prompt": "past", "chosen": "yes", "rejected": "no"}]
        pairs = [{**row, "history": past} for row in people(8, 6)]
        train, validation, test = (
            [row for row in pairs if row["prompt"] in prompts] for prompts in (("q0", "q1", "q2"), ("q3", "q4"), ("q5",))
        )
        assert len(of(train, validation, test)["validation"]) == 16
        of(train, train[:1], test)
        assert "as 1 of its 1 pairs are on prompts of training" in caplog.text
        of(train, test, test)
        assert "as it has pairs of the test data" in caplog.text

    def test_of_data_without_groups(self, of, caplog):
        parts = [
            [{name: value for name, value in row.items() if name != "group"} for row in people(*part)]
            for part in ((8, 4, False), (4, 4, False, 8), (4, 4, False, 12))
        ]
        assert set(of(*parts, infer_groups="minilm")["validation"]["group"]) == {"all"}
