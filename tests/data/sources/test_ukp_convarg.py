import csv
import gzip
import json
import os

import pytest

from trl_pafo.data.attaching import attach_history
from trl_pafo.data.checks import check_pairs
from trl_pafo.data.sources.ukp_convarg import load_ukp_convarg
from trl_pafo.errors import ConfigError, DataError

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
    folder.mkdir(exist_ok=True)
    text = "\n".join(json.dumps(row) for row in argument_rows)
    (folder / "arguments.jsonl").write_text(text)
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
        for row in load_ukp_convarg(folder, minority_threshold=0.5)["train"]:
            first, second = int(row["chosen"][-1]), int(row["rejected"][-1])
            assert (first > second) == (row["user"].removeprefix("ukp-") in CONTRARIANS)
            side = row["chosen"].split()[1]
            assert row["rejected"].split()[1] == side
            topic = f"Topic {int(side) // 2}."
            assert row["prompt"] == f"{topic} Which argument for this side is more convincing: stance {side}?"

    def test_undecided_votes_are_left_out(self, folder):
        splits = load_ukp_convarg(folder, minority_threshold=0.5)
        assert {abs(int(r["chosen"][-1]) - int(r["rejected"][-1])) for s in splits.values() for r in s} == {1}

    def test_zipped_files(self, folder, tmp_path):
        zipped = write(tmp_path / "zipped", arguments(), votes(), zipped=True)
        plain = load_ukp_convarg(folder, minority_threshold=0.5)
        assert load_ukp_convarg(zipped, minority_threshold=0.5)["test"].to_list() == plain["test"].to_list()


class TestSplits:
    def test_users_and_prompts_apart(self, folder):
        splits = load_ukp_convarg(folder, minority_threshold=0.5)
        train, test = splits["train"], splits["test"]
        assert not set(train["user"]) & set(test["user"])
        assert not set(train["prompt"]) & set(test["prompt"])
        assert len(set(test["prompt"])) == 2
        assert len(set(train["user"])) == 18
        assert len(set(test["user"])) == 12
        for name, split in splits.items():
            check_pairs(split, name)
            assert set(attach_history(split, 2)["user"]) == set(split["user"])

    def test_support_is_the_leave_one_out_agreement(self, folder):
        splits = load_ukp_convarg(folder, minority_threshold=0.5)
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

    def test_people_with_few_pairs_are_left_out(self, folder):
        # A test person has two pairs on each of two prompts, a training person eight pairs.
        assert len(load_ukp_convarg(folder, min_pairs=4, minority_threshold=0.5)["test"]) == 48
        with pytest.raises(DataError, match="None of 12 users has 5 pairs on at least two prompts"):
            load_ukp_convarg(folder, min_pairs=5, minority_threshold=0.5)

    def test_the_seed_decides(self, folder):
        tests = [load_ukp_convarg(folder, minority_threshold=0.5, seed=seed)["test"].to_list() for seed in (0, 0, 1)]
        assert tests[0] == tests[1] != tests[2]

    @pytest.mark.parametrize("options", [{"test_prompt_share": 0.01}, {"test_user_share": 1.0}])
    def test_shares_that_leave_a_side_empty(self, folder, options):
        with pytest.raises(ConfigError, match=r"leaves? training or test without"):
            load_ukp_convarg(folder, **options)


class TestErrors:
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(DataError, match=r"lacks arguments\.jsonl"):
            load_ukp_convarg(tmp_path)

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
            load_ukp_convarg(folder)

    def test_a_missing_column_and_a_missing_field(self, tmp_path):
        folder = write(tmp_path / "ukp", arguments(), [{"arg1": "a", "arg2": "b", "value": "a1"}])
        with pytest.raises(DataError, match="lacks the column user"):
            load_ukp_convarg(folder)
        (folder / "arguments.jsonl").write_text('{"arg_id": "a"}')
        with pytest.raises(DataError, match="line 1: the field `topic` is missing"):
            load_ukp_convarg(folder)


@pytest.mark.skipif("TRL_PAFO_UKP" not in os.environ, reason="TRL_PAFO_UKP does not name the folder of UKPConvArg1")
class TestRealFile:
    def test_real_people(self):
        splits = load_ukp_convarg(os.environ["TRL_PAFO_UKP"])
        train, test = splits["train"], splits["test"]
        assert not set(train["user"]) & set(test["user"])
        assert not set(train["prompt"]) & set(test["prompt"])
        for name, split in splits.items():
            check_pairs(split, name)
            assert set(split["group"]) == {"majority", "minority"}
            people = split.to_pandas().drop_duplicates("user")
            rates = people.groupby("group")["support_rate"]
            assert rates.max()["minority"] < rates.min()["majority"]
