"""Your own pairs: every form of file, the test set, and where the groups come from."""

import logging

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from helpers.sources import check_splits, load, write_lines

from trl_pafo.data.sources.files import _warn_of_alike
from trl_pafo.data.sources.splits import facts_of, is_cut_by_support
from trl_pafo.errors import ConfigError, DataError

ORDER = ["prompt", "chosen", "rejected", "user"]


def pair(user, number, **more):
    """A pair on a prompt of the user's own."""
    return {"prompt": f"{user} asks {number}", "chosen": "yes", "rejected": "no", "user": user, **more}


def own_prompts(num_users=10, num_pairs=3, **more):
    return [pair(f"u{u}", n, **more) for n in range(num_pairs) for u in range(num_users)]


def grouped(num_users=10):
    return [{**row, "group": "few" if row["user"] in ("u0", "u1") else "many"} for row in own_prompts(num_users)]


def rated(num_users=20):
    return [{**row, "support_rate": int(row["user"][1:]) / 100} for row in own_prompts(num_users)]


def votes(num_users=20, num_pairs=12):
    """All judge the same pairs; users u0 to u3 against the others."""
    return [
        {"prompt": f"q{n}", "chosen": "no" if u < 4 else "yes", "rejected": "yes" if u < 4 else "no", "user": f"u{u}"}
        for u in range(num_users)
        for n in range(num_pairs)
    ]


@pytest.fixture
def of(tmp_path):
    """The splits of these rows, and of others as the test set."""

    def load_rows(rows, test=None, **options):
        if test is not None:
            options["test_data_path"] = str(write_lines(tmp_path / "test.jsonl", test))
        return load("files", write_lines(tmp_path / "pairs.jsonl", rows), **options)

    return load_rows


def test_groups_that_are_to_be_found_are_one_until_then(of):
    for rows in (own_prompts(), rated(), votes()):
        test = [{**row, "prompt": f"new {row['prompt']}", "user": f"t{row['user']}"} for row in rows]
        splits = of(rows, test, infer_groups="minilm")
        check_splits(splits)
        for part, given in zip(splits.values(), (rows, test), strict=True):
            assert sorted(part["user"][:]) == sorted(row["user"] for row in given)  # nobody is left out
            assert set(part["group"][:]) == {"all"}
            assert set(part["support_rate"][:]) == {1.0}
    assert set(of(grouped(), infer_groups="minilm")["test"]["group"]) == {"few", "many"}


class TestForms:
    @pytest.mark.parametrize("form", ["csv", "parquet", "folder", "folder of splits"])
    def test_all_forms_hold_the_same(self, tmp_path, of, form):
        rows = [{**row, "chosen": "None"} for row in grouped()]
        table = pd.DataFrame(rows)
        path = tmp_path / f"pairs.{form}"
        if form == "parquet":
            table.to_parquet(path)
        elif form == "folder":
            Dataset.from_list(rows).save_to_disk(path)
        elif form == "folder of splits":
            DatasetDict(train=Dataset.from_list(rows)).save_to_disk(path)
        else:
            table.to_csv(path, index=False)
        splits, expected = load("files", path), of(rows)
        for name in ("train", "test"):
            assert splits[name].to_list() == expected[name].to_list()
        assert splits["train"].column_names == [*ORDER, "group", "support_rate"]

    def test_messages_and_histories_stay_and_other_columns_go(self, of):
        history = [{"prompt": "p", "chosen": "c", "rejected": "r", "when": "then"}]
        rows = [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                **{name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")},
                **{"user": int(row["user"][1:]), "group": row["group"]},
                "history": history if row["prompt"].endswith("1") else None,
                "extra": [1] if row["prompt"].endswith("1") else "x",
            }
            for row in grouped()
        ]
        splits = of(rows)
        check_splits(splits.remove_columns("history"))
        assert splits["train"].column_names == [*ORDER, "group", "history", "support_rate"]
        assert set(splits["train"]["user"]) <= set("0123456789")
        by_number = {row["prompt"][0]["content"][-1]: row["history"] for row in splits["train"]}
        assert by_number == {"0": [], "1": [{"prompt": "p", "chosen": "c", "rejected": "r"}], "2": []}


class TestSplit:
    def test_users_and_prompts_apart_and_groups_in_both(self, of):
        splits = of(grouped())
        check_splits(splits)
        assert len(set(splits["test"]["user"])) == 3  # a fifth of eight and, since it is a group, one of two
        for split in splits.values():
            users = list(dict.fromkeys(split["user"]))
            assert split["prompt"][:] == [f"{user} asks {n}" for user in users for n in range(3)]
            assert set(zip(split["group"], split["support_rate"], strict=True)) == {("few", 1 / 7), ("many", 6 / 7)}
            assert len({"u0", "u1"} & set(users)) == 1

    def test_a_given_test_set(self, of, tmp_path):
        train, test = ([row for row in grouped() if (row["user"] in ("u1", "u5")) == is_test] for is_test in (False, True))
        splits = of(train, test)
        check_splits(splits)
        assert set(splits["test"]["user"]) == {"u1", "u5"}
        assert set(splits["test"]["support_rate"]) == {1 / 8, 7 / 8}
        DatasetDict(train=Dataset.from_list(train), test=Dataset.from_list(test)).save_to_disk(tmp_path / "both")
        again = load("files", tmp_path / "both")
        assert {name: rows.to_list() for name, rows in again.items()} == {name: rows.to_list() for name, rows in splits.items()}

    @pytest.mark.parametrize(
        ("role", "one", "other"),
        [("user", "u7", "U7 "), ("user", "007", "7"), ("group", "many", "Many"), ("user", "é", "e\u0301")],
    )
    def test_names_that_may_be_one_are_told(self, role, one, other, caplog):
        _warn_of_alike(role, ["u0", "u1", one])
        assert "in several ways" not in caplog.text
        _warn_of_alike(role, ["u0", "u1", one, other])
        names = " and ".join(map(repr, sorted((one, other))))
        assert f"1 names of a {role} are written in several ways, which count as several: {names}. Write" in caplog.text

    def test_users_of_a_table_are_looked_at(self, of, caplog):
        of([*grouped(), *(pair("U0", n, group="few") for n in range(2))])
        assert "1 names of a user are written in several ways, which count as several: 'U0' and 'u0'." in caplog.text

    def test_splits_that_are_not_used_are_named(self, tmp_path, caplog):
        rows = Dataset.from_list(grouped())
        DatasetDict(train=rows, validation=rows, more=rows).save_to_disk(tmp_path / "both")
        load("files", tmp_path / "both", validation_share=0)
        assert "both: the splits validation, more are not used." in caplog.text

    @pytest.mark.parametrize(
        ("test", "match"),
        [
            ([*grouped(2), *grouped(12)[-2:]], r"2 of 4 users of the test data are in the training data too \(the first: 'u0'\)"),
            ([pair("t", 0)], "Only one of training and test data has the column group"),
            ([pair("t", 0, group="new")], "users of the groups 'new', of which training has none"),
        ],
    )
    def test_a_test_set_that_does_not_fit(self, of, test, match):
        with pytest.raises(DataError, match=match):
            of(grouped(), test)


class TestGroupsFromSupport:
    def test_from_the_agreement_on_common_pairs(self, of):
        rows = votes()
        train = [row for row in rows if int(row["user"][1:]) % 2 and row["prompt"] < "q5"]
        test = [row for row in rows if not int(row["user"][1:]) % 2 and row["prompt"] >= "q5"]
        splits = of(train, test)
        check_splits(splits)
        assert is_cut_by_support(splits["train"])
        assert facts_of(splits["train"])["groups"] == "agreement"
        for split in splits.values():
            for row in split:
                assert row["group"] == ("minority" if row["user"] in ("u0", "u1", "u2", "u3") else "majority")
                # Of ten users in a split, two dissent: one of nine others agrees with these, seven with the rest.
                assert row["support_rate"] == pytest.approx(1 / 9 if row["group"] == "minority" else 7 / 9)

    def test_training_users_are_not_measured_on_votes_of_test_users(self, of):
        # Each has a further prompt of its own, so that some test pairs remain.
        splits = of(votes() + [pair(f"u{u}", 0) for u in range(20)], minority_threshold=0.5, population_seed=9, hold_out="users")
        dissenters = {"u0", "u1", "u2", "u3"}
        in_training = dissenters & set(splits["train"]["user"])
        assert 0 < len(in_training) < 4
        for row in splits["train"]:
            same = len(in_training) if row["user"] in in_training else 16 - len(in_training)
            assert row["support_rate"] == pytest.approx((same - 1) / 15)
        for row in splits["test"]:
            assert row["support_rate"] == pytest.approx(3 / 19 if row["user"] in dissenters else 15 / 19)

    def test_users_who_share_no_pair_are_left_out_and_counted(self, of, caplog):
        rows = [row for row in votes() if row["user"] in ("u0", "u4", "u5", "u6")] + [pair("alone", n) for n in (0, 1)]
        test = [{**row, "prompt": "t" + row["prompt"]} for row in votes() if row["user"] in ("u2", "u8")]
        assert set(of(rows, test)["train"]["user"]) == {"u0", "u4", "u5", "u6"}
        assert "1 of 5 users of the train split were dropped" in caplog.text
        with pytest.raises(DataError, match="Add a column `group` or `support_rate`"):
            of(own_prompts())

    def test_from_given_rates_cut_on_training_alone(self, of):
        splits = of(rated(), minority_quantile=0.25)
        check_splits(splits)
        assert facts_of(splits["train"])["groups"] == "support"
        rate_of = {row["user"]: (row["support_rate"], row["group"]) for row in splits["train"]}
        assert [group for _, group in rate_of.values()].count("minority") == 4
        cut = min(rate for rate, group in rate_of.values() if group == "majority")
        for row in splits["test"]:
            assert row["group"] == ("minority" if row["support_rate"] < cut else "majority")

    def test_a_threshold(self, of):
        for split in of(rated(), minority_threshold=0.05).values():
            assert all((row["group"] == "minority") == (int(row["user"][1:]) < 5) for row in split)
        with pytest.raises(ConfigError, match=r"All training users fall into one group: support rates range from 0\.0"):
            of(rated(), minority_threshold=0.9)
        with pytest.raises(ConfigError, match="`minority_quantile` and `minority_threshold` both say"):
            of(rated(), minority_threshold=0.05, minority_quantile=0.2)

    def test_given_groups_and_rates_stay(self, of, caplog):
        splits = of([{**row, "support_rate": 0.3} for row in grouped()])
        assert not is_cut_by_support(splits["train"])
        assert set(splits["train"]["support_rate"]) == {0.3}
        assert set(splits["train"]["group"]) == {"few", "many"}
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        for option in ("minority_quantile", "minority_threshold"):
            with pytest.raises(ConfigError, match=r"has the column `group`, so .* have no effect"):
                of(grouped(), **{option: 0.3})


class TestWhatUsersAre:
    def test_it_goes_with_their_rows_into_every_split(self, of, caplog):
        caplog.set_level(logging.INFO)
        rows = [
            {**row, "age": 20 + int(row["user"][1:]), "land": "DE" if row["prompt"][-1] == "0" else None} for row in grouped()
        ]
        splits = of(rows, describe=["age", "land"], infer_groups="minilm")
        assert [row["about"] for split in splits.values() for row in split] == [
            {"age": str(20 + int(row["user"][1:])), "land": "DE"} for split in splits.values() for row in split
        ]
        assert "; described: age, land" in caplog.text
        assert "several values" not in caplog.text
        assert facts_of(splits["train"])["hold_out"] == "users_and_prompts"

    def test_several_values_are_counted_and_named_also_across_two_tables(self, of, caplog):
        rows = [{**row, "age": 30 + (row["prompt"] == "u4 asks 2")} for row in grouped()]
        test = [{**row, "age": 31, "prompt": f"new {row['prompt']}"} for row in grouped(2)]
        splits = of(rows, test, describe=["age"], hold_out="pairs")
        assert (
            "3 of 10 users have several values of age and count as such: 'u0' (30, 31), 'u1' (30, 31), 'u4' (30, 31)."
            in caplog.text
        )
        for split in splits.values():
            for row in split:
                assert row["about"]["age"] == ("several values" if row["user"] in ("u0", "u1", "u4") else "30")

    def test_an_unknown_column_is_an_error_with_those_that_there_are(self, of):
        rows = [{**row, "country": "DE"} for row in grouped()]
        with pytest.raises(
            DataError, match=r"no column 'contry' .*prompt, chosen, rejected, user, group, country. Did you mean --describe c"
        ):
            of(rows, describe=["contry"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": {"role": "user"}}, "`prompt` changes its type from row to row, first in row 1"),
        ({"support_rate": 1.5}, "row 1: `support_rate` must be a number in"),
        ({"support_rate": None}, "row 1: `support_rate` must be a number in"),
        ({"group": "other"}, "The user 'u0' has several values of `group`"),
        ({"history": [{"prompt": "p"}]}, "row 1: an entry of the history lacks chosen, rejected"),
    ],
)
def test_a_bad_row_is_named(of, changes, message):
    rows = [pair("u0", n, group="a", support_rate=0.5) for n in range(2)]
    with pytest.raises(DataError, match=message):
        of([rows[0], {**rows[1], **changes}])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"columns": ["user"]}, ConfigError, "--columns must be of the form NAME=VALUE, got 'user'"),
        ({"columns": ["user=a", "user=b"]}, ConfigError, r"--columns names user twice \(a and b\)"),
        ({"preferred_values": {"a": 0, "b": 1}}, ConfigError, "--preferred_values: no effect on .*"),
    ],
)
def test_options_that_do_not_fit_the_table(of, options, error, match):
    with pytest.raises(error, match=match):
        of(grouped(), **options)


def test_names_of_columns_as_flags_and_as_a_mapping(of):
    rows = [{"who": row.pop("user"), **row} for row in grouped()]
    for columns in (["user=who"], {"user": "who"}):
        assert len(of(rows, columns=columns)["train"]) == 21
