import csv
import gzip
import os
import random
from collections import defaultdict
from itertools import product

import numpy as np
import pytest
from helpers.sources import check_splits, load

from trl_pafo.data.sources import polis
from trl_pafo.data.sources.polis import readable_topic, vote_clusters
from trl_pafo.errors import ConfigError, DataError

NUM = 40
PEOPLE = 60
RARE = 15
WAYS = {False: "users", True: "users_and_prompts"}


def statement(number):
    return f'Für "mehr" Bäume,\nTeil {number}: größer, grüner'


def comments():
    """Every eighth statement was rejected by a moderator; a newer one comes first."""
    rows = [
        {"timestamp": 1, "comment-id": n, "author-id": 0, "moderated": -1 if n % 8 == 7 else n % 2, "comment-body": statement(n)}
        for n in range(NUM)
    ]
    return rows[::-1]


def votes(xid=False, seed=0):
    """The first people agree with the first half of the statements, the others with the second, with passes, gaps and slips."""
    rng = random.Random(seed)
    rows = []
    for person in range(PEOPLE):
        row = {"participant": 3 * person, **({"xid": ""} if xid else {}), "group-id": person % 2, "n-votes": 9}
        for number in range(NUM):
            vote = 1 if (person < RARE) == (number < NUM // 2) else -1
            row[number] = rng.choice([vote] * 7 + [-vote, 0, ""])
        rows.append(row)
    return rows


def write(folder, comment_rows=None, vote_rows=None, zipped=False):
    folder.mkdir(exist_ok=True)
    for name, rows in (("comments.csv", comment_rows or comments()), ("participants-votes.csv", vote_rows or votes())):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
            (folder / name).unlink()
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "stadt.mehr-bäume.2rum9cbeh.2021-08-01")


@pytest.fixture(params=[False, True], ids=["known", "new"])
def new_statements(request):
    return request.param


def vote_of(rows=None):
    """What each person said of each statement."""
    return {(f"polis-{row['participant']}", statement(n)): row[n] for row in rows or votes() for n in range(NUM)}


def statements_of(rows):
    return {row[side] for row in rows for side in ("chosen", "rejected")}


def groups_of(rows):
    return dict(zip(rows["user"], rows["group"], strict=True))


class TestPairs:
    def test_the_person_agreed_with_one_and_disagreed_with_the_other(self, folder, new_statements):
        voted, rejected = vote_of(), {statement(n) for n in range(7, NUM, 8)}
        splits = load("polis", folder, pairs_per_user=2, context_pairs=3, hold_out=WAYS[new_statements])
        for name, rows in splits.items():
            said = defaultdict(list)
            for row in rows:
                for pair in (row, *row["history"]):
                    assert voted[row["user"], pair["chosen"]] == 1
                    assert voted[row["user"], pair["rejected"]] == -1
                    assert pair["prompt"] == "Stadt mehr bäume"
                assert len(row["history"]) == 3
                assert not statements_of([row]) & statements_of(row["history"])
                said[row["user"]] += [row["chosen"], row["rejected"]]
            assert all(len(texts) == len(set(texts)) for texts in said.values())  # a statement is in one pair
            assert max(map(len, said.values())) == 2 * (5 if name == "train" else 2)
            assert not statements_of(rows) & rejected

    def test_people_who_agree_or_disagree_too_rarely_are_left_out(self, tmp_path, caplog):
        rows = votes()
        for row in rows[20:30]:
            row |= dict.fromkeys(range(NUM), 1) | {0: -1, 1: -1}
        caplog.set_level("INFO")
        splits = load("polis", write(tmp_path / "x", vote_rows=rows), context_pairs=2)
        kept = {user for part in splits.values() for user in part["user"]}
        assert kept == {f"polis-{row['participant']}" for place, row in enumerate(rows) if not 20 <= place < 30}
        assert "10 of 60 people are left out" in caplog.text

    def test_zipped_files_an_xid_and_a_text_that_is_there_twice(self, folder, tmp_path, caplog):
        plain = load("polis", folder, topic="Bäume")
        other = write(tmp_path / "other", vote_rows=votes(xid=True), zipped=True)
        assert load("polis", other, topic="Bäume")["test"].to_list() == plain["test"].to_list()
        texts = [row | ({"comment-body": statement(0)} if row["comment-id"] == 20 else {}) for row in comments()]
        twice = load("polis", write(tmp_path / "twice", comment_rows=texts), topic="Bäume")
        assert "1 statements are left out" in caplog.text
        voted = vote_of()
        for row in (*twice["train"], *twice["test"]):
            assert voted[row["user"], row["chosen"]] == 1
            assert voted[row["user"], row["rejected"]] == -1

    def test_the_topic_is_in_the_name_of_the_folder(self, tmp_path):
        assert readable_topic(tmp_path / "ssis.land-bank.2rumnecbeh.2021-08-01") == "Ssis land bank"
        assert readable_topic(tmp_path / "15_per-hour") == "15 per hour"


class TestSplits:
    def test_nobody_is_in_both_and_the_histories_are_of_training_statements(self, folder, new_statements):
        splits = load("polis", folder, hold_out=WAYS[new_statements])
        check_splits(splits)
        people = {name: set(rows["user"]) for name, rows in splits.items()}
        assert len(set.union(*people.values())) == sum(map(len, people.values()))
        assert {name: len(users) for name, users in people.items()} == {"train": 36, "validation": 6, "test": 18}
        trained = statements_of(splits["train"]) | statements_of(past for row in splits["train"] for past in row["history"])
        for name in ("validation", "test"):
            judged, shown = statements_of(splits[name]), statements_of(past for row in splits[name] for past in row["history"])
            assert shown <= trained
            assert judged.isdisjoint(trained) if new_statements else judged <= trained
        assert statements_of(splits["validation"]).isdisjoint(statements_of(splits["test"])) == new_statements

    def test_the_share_of_new_statements(self, folder):
        splits = load("polis", folder, hold_out="users_and_prompts", test_prompt_share=0.4)
        assert len(statements_of(splits["test"])) == round(0.4 * 35)

    def test_people_without_a_pair_of_new_statements_judge_none(self, folder, tmp_path, caplog):
        splits = load("polis", folder, hold_out="users_and_prompts")
        tested, users = statements_of(splits["test"]), sorted(set(splits["test"]["user"]))
        new = [n for n in range(NUM) if statement(n) in tested]

        def agreeing(those):
            rows = [row | {n: 1 for n in new if f"polis-{row['participant']}" in those} for row in votes()]
            return write(tmp_path / "agreeing", vote_rows=rows)

        caplog.set_level("INFO")
        assert sorted(set(load("polis", agreeing(users[:4]), hold_out="users_and_prompts")["test"]["user"])) == users[4:]
        assert "test: 4 of 18 people have no pair of new statements" in caplog.text
        with pytest.raises(DataError, match="nobody of test agreed with a new statement and disagreed with one"):
            load("polis", agreeing(users), hold_out="users_and_prompts")

    @pytest.mark.filterwarnings("error:One of the clusters is empty")
    def test_fewer_people_and_more_clusters(self, folder):
        splits = load("polis", folder, train_users=20, test_users=5, num_clusters=3)
        assert [len(set(splits[name]["user"])) for name in ("train", "test")] == [20, 5]
        groups = list(groups_of(splits["train"]).values())
        sizes = [groups.count(name) for name in ("majority", "minority", "minority_2")]
        assert sum(sizes) == len(groups)
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] > 0

    def test_the_seed_decides(self, folder):
        drawn = [load("polis", folder, population_seed=seed) for seed in (0, 0, 1)]
        tests = [splits["test"].to_list() for splits in drawn]
        assert tests[0] == tests[1] != tests[2]
        pairs = [{(row["user"], row["chosen"]) for row in splits["train"]} for splits in drawn]
        both = {user for user, _ in pairs[0]} & {user for user, _ in pairs[2]}
        assert {pair for pair in pairs[0] if pair[0] in both} != {pair for pair in pairs[2] if pair[0] in both}


class TestGroups:
    def test_they_are_the_tastes(self, folder, new_statements):
        splits = load("polis", folder, hold_out=WAYS[new_statements])
        for rows in splits.values():
            for user, group in groups_of(rows).items():
                assert (group == "minority") == (int(user.removeprefix("polis-")) < 3 * RARE)
        groups = list(groups_of(splits["train"]).values())
        share = groups.count("minority") / len(groups)
        assert set(zip(splits["test"]["group"], splits["test"]["support_rate"], strict=True)) == {
            ("minority", share),
            ("majority", groups.count("majority") / len(groups)),
        }

    def test_they_are_made_of_votes_on_which_nobody_is_evaluated(self, folder, new_statements, monkeypatch):
        given = []
        monkeypatch.setattr(polis, "vote_clusters", lambda *args: given.append(args) or vote_clusters(*args))
        splits = load("polis", folder, hold_out=WAYS[new_statements], validation_share=0.3)
        (clustered, num_train, num_clusters, _) = given[0]
        judged = [*splits["validation"], *splits["test"]]
        hidden = {(row["user"], row[side]) for row in judged for side in ("chosen", "rejected")}
        assert len(hidden) > 80
        test_only = statements_of(judged) if new_statements else set()
        texts = [text for n in range(NUM) if n % 8 != 7 and (text := statement(n)) not in test_only]
        users = [user for name in ("train", "validation", "test") for user in dict.fromkeys(splits[name]["user"])]
        voted = vote_of()
        said = [["" if (user, text) in hidden else voted[user, text] for text in texts] for user in users]
        expected = np.array([[np.nan if vote == "" else vote for vote in row] for row in said], dtype=float)
        np.testing.assert_array_equal(clustered, expected)
        assert (num_train, num_clusters) == (len(set(splits["train"]["user"])), 2)


class TestClusters:
    def test_the_best_of_all_partitions(self):
        """By brute force on the points that the docstring describes."""
        for seed in range(6):
            rng = np.random.default_rng(seed)
            given = rng.choice([1.0, -1.0, 0.0, np.nan], size=(11, 6), p=[0.25, 0.25, 0.1, 0.4])
            given[:, seed] = np.where(np.isnan(given).all(axis=1), 1.0, given[:, seed])
            mean = [np.mean([v for v in column if not np.isnan(v)]) for column in given[:9].T]
            centered = np.array([[0 if np.isnan(v) else v - m for v, m in zip(row, mean, strict=True)] for row in given])
            _, vectors = np.linalg.eigh(centered[:9].T @ centered[:9])
            scale = np.array([np.sqrt(6 / sum(not np.isnan(v) for v in row)) for row in given])
            points = centered @ vectors[:, -2:] * scale[:, None]

            def spread(labels, points=points):
                parts = [points[:9][np.array(labels) == g] for g in (0, 1)]
                return sum(((part - part.mean(axis=0)) ** 2).sum() for part in parts)

            best = min((labels for labels in product((0, 1), repeat=9) if 0 < sum(labels) < 9), key=spread)
            found = vote_clusters(given, 9, 2, seed)
            assert spread(found[:9]) == pytest.approx(spread(best))
            assert sum(found[:9] == 0) > sum(found[:9] == 1)
            centers = np.array([points[:9][found[:9] == g].mean(axis=0) for g in (0, 1)])
            assert found[9:].tolist() == [int(np.argmin(((centers - point) ** 2).sum(axis=1))) for point in points[9:]]

    def test_no_cluster_is_without_people(self, monkeypatch):
        """A start that loses a cluster may lie closer to the people than a bad one that keeps all."""
        starts = iter([[[0, 0], [999, 0]], [[90, 90], [-90, -90]]] * 10)
        monkeypatch.setattr(polis, "kmeans2", lambda *args, **options: (np.array(next(starts), dtype=float), None))
        given = np.sign(np.random.default_rng(0).normal(size=(12, 6)))
        assert set(vote_clusters(given, 12, 2, 0).tolist()) == {0, 1}


class TestErrors:
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(DataError, match=r"lacks comments\.csv .*Give the folder that holds"):
            load("polis", tmp_path)
        (write(tmp_path / "x") / "participants-votes.csv").unlink()
        with pytest.raises(DataError, match=r"lacks participants-votes\.csv"):
            load("polis", tmp_path / "x")

    @pytest.mark.parametrize(
        ("comment", "vote", "message"),
        [
            ({"comment-body": " "}, {}, "the field `comment-body` must be a text"),
            ({"comment-id": 0}, {}, "the comment 0 is there twice"),
            ({"comment-id": 99}, {}, "has votes on the comment 39, which comments.csv lacks"),
            ({}, {"participant": ""}, "line 2: the field `participant` must be a text"),
            ({}, {"participant": 3}, "has a participant twice"),
            ({}, {5: 2}, "line 2: the vote on 5 must be 1, 0, -1 or empty, got '2'"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path, comment, vote, message):
        first_comment, first_vote = comments()[0] | {"moderated": 1} | comment, votes()[0] | vote
        folder = write(tmp_path / "x", [first_comment, *comments()[1:]], [first_vote, *votes()[1:]])
        with pytest.raises(DataError, match=message):
            polis.read_conversation(folder)

    def test_a_missing_column(self, tmp_path):
        without = [{k: v for k, v in row.items() if k != "moderated"} for row in comments()]
        with pytest.raises(DataError, match="lacks the column moderated"):
            polis.read_conversation(write(tmp_path / "x", without))
        for rows, message in (([{"x": 1}], "lacks the column participant"), ([{"participant": 1}], "has no column of a comment")):
            with pytest.raises(DataError, match=message):
                polis.read_conversation(write(tmp_path / "x", vote_rows=rows))

    def test_what_cannot_be_asked_for(self, folder):
        with pytest.raises(ConfigError, match="--hold_out pairs: the votes of a person have no order"):
            load("polis", folder, hold_out="pairs")
        with pytest.raises(ConfigError, match="`train_users` must be between 1 and 42"):
            load("polis", folder, train_users=43)
        with pytest.raises(ConfigError, match="`test_prompt_share` has no effect where test people judge known statements"):
            load("polis", folder, test_prompt_share=0.4)
        with pytest.raises(DataError, match="votes of 5 training people do not fall into 2 clusters"):
            vote_clusters(np.ones((6, 4)), 5, 2, 0)

    def test_too_few_people_who_agree_and_disagree(self, tmp_path):
        rows = [row | dict.fromkeys(range(NUM), 1) | {0: -1} for row in votes()]
        with pytest.raises(DataError, match=r"only 0 of 60 people agreed with 2 statements .*; it takes 20"):
            load("polis", write(tmp_path / "x", vote_rows=rows))
        with pytest.raises(DataError, match="only 19 of 19 people"):
            load("polis", write(tmp_path / "few", vote_rows=votes()[:19]))


@pytest.mark.skipif("TRL_PAFO_POLIS" not in os.environ, reason="TRL_PAFO_POLIS does not name the folder of a conversation")
def test_the_real_files(new_statements):
    splits = load("polis", os.environ["TRL_PAFO_POLIS"], context_pairs=2, hold_out=WAYS[new_statements])
    check_splits(splits)
    for rows in splits.values():
        assert set(rows["group"]) == {"majority", "minority"}
