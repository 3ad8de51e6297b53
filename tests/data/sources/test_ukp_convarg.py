import csv
import gzip
import os

import pytest
from helpers.sources import check_splits, load, write_lines

from trl_pafo.data.sources import ukp_convarg
from trl_pafo.errors import DataError

SIDES = 6
CONTRARIANS = ("w0", "w1", "w2", "w3", "w4", "w5")


def arguments():
    return [
        {"arg_id": f"s{s}a{a}", "topic": f"Topic {s // 2}.", "side": f"side{s}", "stance": f"stance {s}", "text": f"text {s} {a}"}
        for s in range(SIDES)
        for a in range(3)
    ]


def votes(num_users=30):
    """All judge the same pairs; the contrarians like the second argument, and everyone is undecided once."""
    rows = []
    for s in range(SIDES):
        for first, second in ((0, 1), (1, 2), (0, 2)):
            for u in range(num_users):
                value = "equal" if (first, second) == (0, 2) else "a2" if f"w{u}" in CONTRARIANS else "a1"
                rows.append({"arg1": f"s{s}a{first}", "arg2": f"s{s}a{second}", "user": f"w{u}", "value": value, "gold": ""})
    return rows


def write(folder, argument_rows, vote_rows, zipped=False):
    write_lines(folder / "arguments.jsonl", argument_rows)
    with (folder / "votes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(vote_rows[0]))
        writer.writeheader()
        writer.writerows(vote_rows)
    if zipped:
        for name in ("arguments.jsonl", "votes.csv"):
            (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
            (folder / name).unlink()
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "ukp", arguments(), votes())


class TestPairs:
    def test_the_argument_that_was_voted_for_is_chosen(self, folder):
        for row in load("ukp_convarg", folder, minority_threshold=0.5)["train"]:
            first, second = int(row["chosen"][-1]), int(row["rejected"][-1])
            assert (first > second) == (row["user"].removeprefix("ukp-") in CONTRARIANS)
            side = row["chosen"].split()[1]
            assert row["rejected"].split()[1] == side
            topic = f"Topic {int(side) // 2}."
            assert row["prompt"] == f"{topic} Which argument for this side is more convincing: stance {side}?"

    def test_undecided_votes_are_left_out(self, folder):
        splits = load("ukp_convarg", folder, minority_threshold=0.5)
        assert {abs(int(r["chosen"][-1]) - int(r["rejected"][-1])) for s in splits.values() for r in s} == {1}

    def test_zipped_files(self, folder, tmp_path):
        zipped = write(tmp_path / "zipped", arguments(), votes(), zipped=True)
        plain = load("ukp_convarg", folder, minority_threshold=0.5)
        assert load("ukp_convarg", zipped, minority_threshold=0.5)["test"].to_list() == plain["test"].to_list()


class TestSplits:
    def test_users_and_prompts_apart(self, folder):
        splits = load("ukp_convarg", folder, minority_threshold=0.5)
        check_splits(splits)
        assert len(set(splits["test"]["prompt"])) == 2
        assert [len(set(splits[name]["user"])) for name in ("train", "test")] == [18, 12]

    def test_support_is_the_leave_one_out_agreement(self, folder):
        splits = load("ukp_convarg", folder, minority_threshold=0.5)
        dissent = {user for user in splits["train"]["user"] if user.removeprefix("ukp-") in CONTRARIANS}
        for row in splits["train"]:
            # 18 training users judge each pair alike, up to the contrarians among them.
            same = len(dissent) if row["user"] in dissent else 18 - len(dissent)
            assert row["support_rate"] == pytest.approx((same - 1) / 17)
        for row in splits["test"]:
            same = 6 if row["user"].removeprefix("ukp-") in CONTRARIANS else 24
            assert row["support_rate"] == pytest.approx((same - 1) / 29)
        for split in splits.values():
            for row in split:
                assert (row["group"] == "minority") == (row["user"].removeprefix("ukp-") in CONTRARIANS)

    def test_people_with_few_pairs_are_left_out(self, folder, monkeypatch):
        # A test person has two pairs on each of two prompts, a training person eight pairs.
        assert len(load("ukp_convarg", folder, minority_threshold=0.5)["test"]) == 48
        monkeypatch.setattr(ukp_convarg, "MIN_PAIRS", 5)
        with pytest.raises(DataError, match="None of 12 users has 5 pairs on at least two prompts"):
            load("ukp_convarg", folder, minority_threshold=0.5)

    def test_the_seed_decides(self, folder):
        tests = [
            load("ukp_convarg", folder, minority_threshold=0.5, population_seed=seed)["test"].to_list() for seed in (0, 0, 1)
        ]
        assert tests[0] == tests[1] != tests[2]


class TestErrors:
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(DataError, match=r"lacks arguments\.jsonl"):
            load("ukp_convarg", tmp_path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"value": "a3"}, "line 2: `value` must be a1, a2 or equal"),
            ({"arg1": "s9a9"}, "line 2: the arguments 's0a1' and 's9a9' are not both in"),
            ({"arg1": "s1a0"}, "line 2: a vote needs a user, and two arguments for the same side"),
            ({"user": ""}, "line 2: a vote needs a user"),
        ],
    )
    def test_a_bad_vote_is_named(self, tmp_path, changes, message):
        rows = votes(3)
        folder = write(tmp_path / "ukp", arguments(), [{**rows[0], **changes}, *rows[1:]])
        with pytest.raises(DataError, match=message):
            load("ukp_convarg", folder)

    def test_votes_of_which_none_is_for_one_argument(self, tmp_path):
        rows = [row | {"value": "equal"} for row in votes(3)]
        with pytest.raises(DataError, match=r"votes\.csv holds no vote for one of two arguments"):
            load("ukp_convarg", write(tmp_path / "ukp", arguments(), rows))

    def test_a_missing_column_and_a_missing_field(self, tmp_path):
        folder = write(tmp_path / "ukp", arguments(), [{"arg1": "a", "arg2": "b", "value": "a1"}])
        with pytest.raises(DataError, match="lacks the column user"):
            load("ukp_convarg", folder)
        (folder / "arguments.jsonl").write_text('{"arg_id": "a"}')
        with pytest.raises(DataError, match="line 1: the field `topic` must be a text"):
            load("ukp_convarg", folder)


@pytest.mark.skipif("TRL_PAFO_UKP" not in os.environ, reason="TRL_PAFO_UKP does not name the folder of UKPConvArg1")
def test_the_real_file():
    splits = load("ukp_convarg", os.environ["TRL_PAFO_UKP"])
    check_splits(splits)
    for split in splits.values():
        rates = split.to_pandas().drop_duplicates("user").groupby("group")["support_rate"]
        assert rates.max()["minority"] < rates.min()["majority"]
