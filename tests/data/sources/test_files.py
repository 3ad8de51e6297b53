import json
import logging

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from trl_pafo.data.checks import check_pairs
from trl_pafo.data.sources.files import load_files
from trl_pafo.data.sources.splits import is_cut_by_support
from trl_pafo.errors import ConfigError, DataError

ORDER = ["prompt", "chosen", "rejected", "user"]


def pair(user, number, **more):
    """A pair on a prompt of the user's own."""
    return {"prompt": f"{user} asks {number}", "chosen": "yes", "rejected": "no", "user": user, **more}


def own_prompts(num_users=10, num_pairs=3, **more):
    return [pair(f"u{u}", n, **more) for n in range(num_pairs) for u in range(num_users)]


def grouped(num_users=10):
    return [{**row, "group": "few" if row["user"] in ("u0", "u1") else "many"} for row in own_prompts(num_users)]


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def assert_disjoint(splits):
    assert not set(splits["train"]["user"]) & set(splits["test"]["user"])
    assert not {str(p) for p in splits["train"]["prompt"]} & {str(p) for p in splits["test"]["prompt"]}
    for name, split in splits.items():
        check_pairs(split, name)


class TestForms:
    @pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "parquet", "folder", "folder of splits"])
    def test_all_forms_hold_the_same(self, tmp_path, form):
        rows = grouped()
        table = pd.DataFrame(rows)
        path = tmp_path / f"pairs.{form}"
        if form == "jsonl":
            write(path, rows)
        elif form == "json":
            path.write_text(json.dumps(rows))
        elif form in ("csv", "tsv"):
            table.to_csv(path, index=False, sep="," if form == "csv" else "\t")
        elif form == "parquet":
            table.to_parquet(path)
        elif form == "folder":
            Dataset.from_list(rows).save_to_disk(path)
        else:
            DatasetDict(train=Dataset.from_list(rows)).save_to_disk(path)
        splits = load_files(path)
        expected = load_files(write(tmp_path / "expected.jsonl", rows))
        assert splits["train"].to_list() == expected["train"].to_list()
        assert splits["test"].to_list() == expected["test"].to_list()
        assert splits["train"].column_names == [*ORDER, "group", "support_rate"]

    def test_a_zipped_csv_keeps_its_texts(self, tmp_path):
        table = pd.DataFrame([{**row, "user": f"00{row['user'][1:]}", "chosen": "None"} for row in grouped()])
        table.to_csv(tmp_path / "pairs.csv.gz", index=False)
        train = load_files(tmp_path / "pairs.csv.gz")["train"]
        assert set(train["chosen"]) == {"None"}
        assert all(user.startswith("00") for user in train["user"])

    def test_messages_and_history_pass_through(self, tmp_path):
        def messages(role, text):
            return [{"role": role, "content": text}]

        history = [{"prompt": "p", "chosen": "c", "rejected": "r", "when": "then"}]
        rows = [
            {
                **{"prompt": messages("user", row["prompt"]), "chosen": messages("assistant", "yes")},
                **{"rejected": messages("assistant", "no"), "user": row["user"], "group": row["group"]},
                "history": history if row["prompt"].endswith("1") else None,
            }
            for row in grouped()
        ]
        splits = load_files(write(tmp_path / "pairs.jsonl", rows))
        assert_disjoint(splits)
        assert splits["train"].column_names == [*ORDER, "group", "support_rate", "history"]
        by_number = {row["prompt"][0]["content"][-1]: row["history"] for row in splits["train"]}
        assert by_number == {"0": [], "1": [{"prompt": "p", "chosen": "c", "rejected": "r"}], "2": []}

    def test_columns_of_other_names_and_fields_without_one_type(self, tmp_path):
        rows = [
            {"question": r["prompt"], "chosen": "yes", "rejected": "no", "uid": number % 10, "extra": [1] if number else "x"}
            for number, r in enumerate(own_prompts())
        ]
        rows = [{**row, "group": str(row["uid"] < 2)} for row in rows]
        splits = load_files(write(tmp_path / "pairs.jsonl", rows), columns={"prompt": "question", "user": "uid"})
        assert set(splits["train"]["user"]) | set(splits["test"]["user"]) == set("0123456789")
        assert "extra" not in splits["train"].column_names


class TestSplit:
    def test_users_and_prompts_apart_and_groups_in_both(self, tmp_path):
        splits = load_files(write(tmp_path / "pairs.jsonl", grouped(20)), test_user_share=0.5)
        assert_disjoint(splits)
        assert len(set(splits["test"]["user"])) == 10
        for split in splits.values():
            assert {user for user, group in zip(split["user"], split["group"], strict=True) if group == "few"} in (
                {"u0"},
                {"u1"},
            )
            assert set(zip(split["group"], split["support_rate"], strict=True)) == {("few", 0.1), ("many", 0.9)}

    def test_rows_of_a_user_are_brought_together_in_their_order(self, tmp_path):
        splits = load_files(write(tmp_path / "pairs.jsonl", grouped()))
        for split in splits.values():
            users = list(dict.fromkeys(split["user"]))
            assert split["prompt"][:] == [f"{user} asks {n}" for user in users for n in range(3)]

    def test_shared_prompts_leave_the_test_and_are_counted(self, tmp_path, caplog):
        rows = [{**row, "prompt": "all ask"} if row["prompt"].endswith("0") else row for row in grouped()]
        splits = load_files(write(tmp_path / "pairs.jsonl", rows))
        assert_disjoint(splits)
        assert "2 of 6 test pairs are left out, since their prompts occur in training" in caplog.text
        assert len(splits["test"]) == 4

    def test_prompts_of_training_histories_count_as_known(self, tmp_path):
        past = {"prompt": "a past question", "chosen": "yes", "rejected": "no"}
        train = [pair("u0", 0, group="a", history=[past])]
        test = [{**pair("u1", 0, group="a", history=[]), "prompt": p} for p in ("a past question", "another")]
        splits = load_files(write(tmp_path / "train.jsonl", train), write(tmp_path / "test.jsonl", test))
        assert splits["test"]["prompt"][:] == ["another"]

    def test_no_test_pair_left(self, tmp_path):
        rows = [{**row, "prompt": "all ask"} for row in grouped()]
        with pytest.raises(DataError, match="All 6 test pairs have a prompt that occurs in training"):
            load_files(write(tmp_path / "pairs.jsonl", rows))

    @pytest.mark.parametrize("share", [0.0, 1.0, 0.01])
    def test_a_share_that_leaves_a_side_empty(self, tmp_path, share):
        with pytest.raises(ConfigError, match="leave training or test without users"):
            load_files(write(tmp_path / "pairs.jsonl", grouped()), test_user_share=share)

    def test_the_seed_decides(self, tmp_path):
        path = write(tmp_path / "pairs.jsonl", grouped(20))
        tests = [set(load_files(path, seed=seed)["test"]["user"]) for seed in (0, 0, 1)]
        assert tests[0] == tests[1] != tests[2]

    def test_a_given_test_set(self, tmp_path):
        rows = grouped()
        train = [row for row in rows if row["user"] not in ("u1", "u5")]
        test = [row for row in rows if row["user"] in ("u1", "u5")]
        splits = load_files(write(tmp_path / "train.jsonl", train), write(tmp_path / "test.jsonl", test))
        assert_disjoint(splits)
        assert set(splits["test"]["user"]) == {"u1", "u5"}
        assert set(splits["test"]["support_rate"]) == {1 / 8, 7 / 8}
        DatasetDict(train=Dataset.from_list(train), test=Dataset.from_list(test)).save_to_disk(tmp_path / "both")
        again = load_files(tmp_path / "both")
        assert again["test"].to_list() == splits["test"].to_list()
        assert again["train"].to_list() == splits["train"].to_list()

    def test_splits_that_are_not_used_are_named(self, tmp_path, caplog):
        rows = Dataset.from_list(grouped())
        DatasetDict(train=rows, validation=rows).save_to_disk(tmp_path / "both")
        load_files(tmp_path / "both")
        assert "both: the splits validation are not used." in caplog.text

    def test_a_given_test_set_with_training_users(self, tmp_path):
        train, test = write(tmp_path / "a.jsonl", grouped()), write(tmp_path / "b.jsonl", grouped(2))
        with pytest.raises(DataError, match=r"2 users of the test data are in the training data too \(the first: 'u0'\)"):
            load_files(train, test)

    def test_a_column_in_one_of_the_two_only(self, tmp_path):
        test = write(tmp_path / "test.jsonl", [pair("t", 0)])
        with pytest.raises(DataError, match="Only one of training and test data has the column group"):
            load_files(write(tmp_path / "train.jsonl", grouped()), test)

    def test_a_test_group_that_training_lacks(self, tmp_path):
        test = write(tmp_path / "test.jsonl", [pair("t", 0, group="new")])
        with pytest.raises(DataError, match="users of the groups 'new', of which training has none"):
            load_files(write(tmp_path / "train.jsonl", grouped()), test)


def votes(num_users=20, num_pairs=12):
    """All judge the same pairs; users u0 to u3 against the others. The last pairs are for the test users alone."""
    rows = []
    for u in range(num_users):
        for n in range(num_pairs):
            liked, other = ("no", "yes") if u < 4 else ("yes", "no")
            rows.append({"prompt": f"q{n}", "chosen": liked, "rejected": other, "user": f"u{u}"})
    return rows


class TestGroupsFromSupport:
    def test_from_the_agreement_on_common_pairs(self, tmp_path):
        rows = votes()
        train = [row for row in rows if int(row["user"][1:]) % 2 and row["prompt"] < "q5"]
        test = [row for row in rows if not int(row["user"][1:]) % 2 and row["prompt"] >= "q5"]
        splits = load_files(write(tmp_path / "train.jsonl", train), write(tmp_path / "test.jsonl", test))
        assert_disjoint(splits)
        assert is_cut_by_support(splits["train"])
        for split in splits.values():
            for row in split:
                assert row["group"] == ("minority" if row["user"] in ("u0", "u1", "u2", "u3") else "majority")
                # Of ten users in a split, two dissent: one of nine others agrees with these, seven with the rest.
                assert row["support_rate"] == pytest.approx(1 / 9 if row["group"] == "minority" else 7 / 9)

    def test_training_users_are_not_measured_on_votes_of_test_users(self, tmp_path):
        # Each has a further prompt of its own, so that some test pairs remain.
        rows = votes() + [pair(f"u{u}", 0) for u in range(20)]
        splits = load_files(write(tmp_path / "pairs.jsonl", rows), test_user_share=0.5, minority_threshold=0.5)
        assert_disjoint(splits)
        dissent = {"u0", "u1", "u2", "u3"} & set(splits["train"]["user"])
        assert 0 < len(dissent) < 4
        for row in splits["train"]:
            same = len(dissent) if row["user"] in dissent else 10 - len(dissent)
            assert row["support_rate"] == pytest.approx((same - 1) / 9)
        for row in splits["test"]:
            assert row["support_rate"] == pytest.approx(3 / 19 if row["user"] in ("u0", "u1", "u2", "u3") else 15 / 19)

    def test_users_who_share_no_pair_are_left_out_and_counted(self, tmp_path, caplog):
        rows = [row for row in votes() if row["user"] in ("u0", "u4", "u5", "u6")] + [pair("alone", 0)]
        test = [row for row in votes() if row["user"] in ("u2", "u8")]
        test = [{**row, "prompt": "t" + row["prompt"]} for row in test]
        splits = load_files(write(tmp_path / "train.jsonl", rows), write(tmp_path / "test.jsonl", test))
        assert set(splits["train"]["user"]) == {"u0", "u4", "u5", "u6"}
        assert "1 of 5 users of the train split are left out" in caplog.text

    def test_nobody_shares_a_pair(self, tmp_path):
        with pytest.raises(DataError, match="Add a column `group` or `support_rate`"):
            load_files(write(tmp_path / "pairs.jsonl", own_prompts()))

    def test_from_given_rates_cut_on_training_alone(self, tmp_path):
        rows = [{**row, "support_rate": int(row["user"][1:]) / 100} for row in own_prompts(20)]
        splits = load_files(write(tmp_path / "pairs.jsonl", rows), minority_quantile=0.25)
        assert_disjoint(splits)
        rate_of = {row["user"]: (row["support_rate"], row["group"]) for row in splits["train"]}
        assert [group for _, group in rate_of.values()].count("minority") == 4
        cut = min(rate for rate, group in rate_of.values() if group == "majority")
        for row in splits["test"]:
            assert row["group"] == ("minority" if row["support_rate"] < cut else "majority")

    def test_thresholds_and_names(self, tmp_path):
        rows = [{**row, "support_rate": int(row["user"][1:]) / 100} for row in own_prompts(20)]
        options = {"minority_threshold": (0.05, 0.1), "group_names": ("high", "middle", "low")}
        splits = load_files(write(tmp_path / "pairs.jsonl", rows), **options)
        for row in (*splits["train"], *splits["test"]):
            number = int(row["user"][1:])
            assert row["group"] == ("low" if number < 5 else "middle" if number < 10 else "high")

    def test_a_threshold_that_leaves_a_group_empty(self, tmp_path):
        rows = [{**row, "support_rate": 0.5} for row in own_prompts()]
        with pytest.raises(ConfigError, match="No training user falls into the group 'minority'"):
            load_files(write(tmp_path / "pairs.jsonl", rows), minority_threshold=0.1)

    def test_given_groups_and_rates_stay(self, tmp_path, caplog):
        rows = [{**row, "support_rate": 0.3} for row in grouped()]
        with caplog.at_level(logging.WARNING):
            splits = load_files(write(tmp_path / "pairs.jsonl", rows))
        assert not is_cut_by_support(splits["train"])
        assert set(splits["train"]["support_rate"]) == {0.3}
        assert set(splits["train"]["group"]) == {"few", "many"}
        assert not caplog.text


class TestErrors:
    def test_missing_columns_are_named_beside_those_present(self, tmp_path):
        rows = [{"prompt": "p", "chosen": "c", "annotator": "u"}]
        with pytest.raises(DataError, match="lacks the columns rejected, user; it has prompt, chosen, annotator"):
            load_files(write(tmp_path / "pairs.jsonl", rows))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"prompt": " "}, "row 1: `prompt` must be a text"),
            ({"chosen": None}, "row 1: `chosen` must be a text"),
            ({"chosen": "no"}, "row 1: chosen and rejected are identical"),
            ({"user": None}, "row 1: has no `user`"),
            ({"group": ""}, "row 1: has no `group`"),
            ({"support_rate": 1.5}, "row 1: `support_rate` must be a number in"),
            ({"support_rate": None}, "row 1: `support_rate` must be a number in"),
            ({"support_rate": 0.4}, "The user 'u0' has several values of `support_rate`"),
            ({"group": "other"}, "The user 'u0' has several values of `group`"),
            ({"history": [{"prompt": "p"}]}, "row 1: an entry of the history lacks chosen, rejected"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path, changes, message):
        rows = [pair("u0", n, group="a", support_rate=0.5) for n in range(2)]
        with pytest.raises(DataError, match=message):
            load_files(write(tmp_path / "pairs.jsonl", [rows[0], {**rows[1], **changes}]))

    def test_text_prompts_with_messages_as_responses(self, tmp_path):
        said = [{"role": "assistant", "content": "yes"}]
        path = write(tmp_path / "pairs.jsonl", [pair("u", 0, chosen=said, rejected=said)])
        with pytest.raises(DataError, match="Give all as texts or all as messages"):
            load_files(path)

    def test_types_that_change(self, tmp_path):
        rows = [pair("u0", 0), {**pair("u0", 1), "prompt": [{"role": "user", "content": "hi"}]}]
        with pytest.raises(DataError, match="the field `prompt` changes its type from row to row"):
            load_files(write(tmp_path / "pairs.jsonl", rows))

    @pytest.mark.parametrize("option", ["minority_quantile", "minority_threshold"])
    def test_a_cut_has_no_effect_on_given_groups(self, tmp_path, option):
        with pytest.raises(ConfigError, match=r"has the column `group`, so .* have no effect"):
            load_files(write(tmp_path / "pairs.jsonl", grouped()), **{option: 0.3})

    def test_one_column_under_two_names(self, tmp_path):
        with pytest.raises(ConfigError, match="`columns` gives one column two names"):
            load_files(write(tmp_path / "pairs.jsonl", grouped()), columns={"chosen": "user", "user": "user"})

    def test_columns_that_the_schema_does_not_know(self, tmp_path):
        with pytest.raises(ConfigError, match="`columns` names uid; it may name prompt, chosen"):
            load_files(write(tmp_path / "pairs.jsonl", grouped()), columns={"uid": "user"})

    @pytest.mark.parametrize("path", ["none.jsonl", "/none/at/all", "owner/none"])
    def test_nothing_there(self, path, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        with pytest.raises(DataError, match="Correct the path"):
            load_files(path)
