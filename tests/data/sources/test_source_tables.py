"""Tables of every form to pairs: what is recognized, what is refused, what is left out and counted."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_pafo.data.sources.columns import NAMES
from trl_pafo.data.sources.tables import read_table
from trl_pafo.errors import ConfigError, DataError


def survey(*answers, **more):
    """Rows of A against B of one user, a prompt each."""
    return [
        {"user_id": "ann", "prompt": f"q{n}", "response_a": f"a{n}", "response_b": f"b{n}", "preferred": said, **more}
        for n, said in enumerate(answers)
    ]


def read(rows, columns=None, preferred=None):
    return read_table(pd.DataFrame(rows), "survey.csv", columns, preferred)


def chosen(rows, columns=None, preferred=None):
    return read(rows, columns, preferred).pairs["chosen"][:]


def talk(*texts):
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


class TestAgainst:
    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("a", "b"),
            ("A", "B"),
            (1, 2),
            (1.0, 2.0),
            ("1", "2"),
            ("left", "right"),
            ("Response A", "response_b"),
            ("model_a", "model_b"),
        ],
    )
    def test_the_values_that_are_understood(self, first, second):
        pairs = read(survey(first, second, first)).pairs
        assert pairs["chosen"][:] == ["a0", "b1", "a2"]
        assert pairs["rejected"][:] == ["b0", "a1", "b2"]

    def test_ties_and_missing_answers_are_left_out_and_counted(self):
        table = read(survey("a", "tie", None, "tie (bothbad)", "Both", ""))
        assert table.pairs["chosen"][:] == ["a0"]
        left = "left out: 3 ties (the first: row 1); 2 rows without an answer (the first: row 2)"
        assert left in table.look[2]

    def test_values_of_ones_own(self):
        assert chosen(survey(0, 1, 1), preferred={"a": ["0"], "b": ["1"]}) == ["a0", "b1", "b2"]
        assert chosen(survey("links", "rechts", "egal"), preferred={"a": ["links"], "b": ["rechts"], "tie": ["egal"]}) == [
            "a0",
            "b1",
        ]
        assert chosen(survey("both", "x"), preferred={"a": ["both"], "b": ["x"]}) == ["a0", "b1"]

    def test_the_names_of_the_columns(self):
        rows = [{**row, "Idea 1 ": row["response_a"], "Idea 2": row["response_b"]} for row in survey("Idea 1", "idea 2")]
        assert chosen(rows, {"response_a": "Idea 1 ", "response_b": "Idea 2"}) == ["a0", "b1"]
        assert chosen(rows, {"response_a": "Idea 2", "response_b": "Idea 1 "}) == ["a0", "b1"]

    def test_the_texts_of_the_responses(self):
        assert chosen(survey("a0", "b1", "tie")) == ["a0", "b1"]
        rows = [{**row, "response_a": "2", "response_b": "1"} for row in survey("2")]
        with pytest.raises(DataError, match="row 0: preferred is '2', and which response that is cannot be told"):
            read(rows)  # the answer 2, or the second?
        assert chosen(rows, preferred={"a": ["1"], "b": ["2"]}) == ["1"]

    def test_ties_alone_may_be_named(self):
        assert chosen(survey("a", "no preference", "2"), preferred={"tie": ["no preference"]}) == ["a0", "b2"]

    @pytest.mark.parametrize(
        ("answers", "preferred", "error", "match"),
        [
            ((1, 0), None, DataError, "row 1: preferred is '0', .*--preferred_values a=VALUE b=VALUE"),
            (("a", "x"), {"a": ["a"]}, ConfigError, "must name both sides"),
            (("a", "x"), {"a": ["a"], "c": ["x"]}, ConfigError, "--preferred_values names c. Write a=VALUE b=VALUE"),
            (("a", "b"), {"a": ["x"], "b": ["y"]}, DataError, "row 0: preferred is 'a'"),
        ],
    )
    def test_values_that_cannot_be_told(self, answers, preferred, error, match):
        with pytest.raises(error, match=match):
            read(survey(*answers), preferred=preferred)

    def test_an_arena_log(self):
        rows = [
            {
                "question_id": n,
                "model_a": "gpt",
                "model_b": "llama",
                "winner": winner,
                "judge": f"judge_{n % 2}",
                "conversation_a": talk(f"hi {n}", "hello", "more", "yes"),
                "conversation_b": talk(f"hi {n}", "hey", "more", "no"),
                "tstamp": 10 - n,
            }
            for n, winner in enumerate(("model_a", "model_b", "tie", "tie (bothbad)", "gpt", "llama"))
        ]
        table = read(rows)
        assert table.timed
        assert table.pairs["user"][:] == ["judge_1", "judge_0", "judge_1", "judge_0"]  # by their times: the last rows first
        assert table.pairs["prompt"][0] == talk("hi 5")
        assert [row[0]["content"] for row in table.pairs["chosen"]] == ["hey", "hello", "hey", "hello"]
        assert [len(row) for row in table.pairs["rejected"]] == [3] * 4
        assert "not used: question_id, model_a, model_b" in table.look[0]
        assert "2 ties" in table.look[2]

    def test_conversations_as_json_in_a_table_of_texts(self):
        rows = survey("a", "b")
        as_text = [
            {**row, **{f"response_{s}": json.dumps(talk(row["prompt"], row[f"response_{s}"])) for s in "ab"}} for row in rows
        ]
        pairs = read(as_text).pairs
        assert pairs["prompt"][:] == [talk("q0"), talk("q1")]
        assert pairs["chosen"][1] == [{"role": "assistant", "content": "b1"}]
        assert chosen([{**row, "response_a": "[see above]"} for row in rows]) == ["[see above]", "b1"]  # no JSON: a text

    def test_messages_as_python_prints_them_are_no_text(self):
        printed = [{**row, "response_a": str(talk(row["prompt"], row["response_a"]))} for row in survey("a", "b")]
        with pytest.raises(DataError, match=r"the column response_a holds messages as text that is no JSON .* json\.dumps"):
            read(printed)

    def test_texts_beside_messages_become_messages(self):
        pairs = read([{**row, "response_a": talk("", row["response_a"])[1:]} for row in survey("a", "b")]).pairs
        assert pairs["prompt"][0] == [{"role": "user", "content": "q0"}]
        assert pairs["chosen"][:] == [[{"role": "assistant", "content": text}] for text in ("a0", "b1")]


class TestRatings:
    def test_the_name_of_a_model_beside_itself_tells_nothing(self):
        rows = survey("gpt", "llama", model_a="gpt", model_b="llama")
        assert chosen(rows) == ["a0", "b1"]
        with pytest.raises(DataError, match="row 1: preferred is 'gpt', and which response that is cannot be told"):
            read([rows[0], {**rows[0], "model_b": "gpt"}])

    @settings(max_examples=40)
    @given(
        st.lists(
            st.tuples(st.sampled_from("uv"), st.sampled_from("pq"), st.sampled_from("xyz"), st.sampled_from([1, 2, 3, None])),
            max_size=12,
        ),
        st.sampled_from(["score", "rank"]),
    )
    def test_all_pairs_of_one_user_and_prompt(self, rated, name):
        rows = [{"user": u, "prompt": p, "response": r, name: s} for u, p, r, s in rated]
        expected = set()
        for one, two in combinations([row for row in rows if row[name] is not None], 2):
            if (one["user"], one["prompt"]) == (two["user"], two["prompt"]) and one[name] != two[name]:
                better, worse = (one, two) if (one[name] > two[name]) == (name == "score") else (two, one)
                if better["response"] != worse["response"]:
                    expected.add((one["user"], one["prompt"], better["response"], worse["response"]))
        if not expected:
            if rows:
                with pytest.raises(DataError, match=r"no pair is left of \d+ rows\. Left out: "):
                    read_table(Dataset.from_list(rows), "x")
            return
        pairs = read_table(Dataset.from_list(rows), "x").pairs
        found = [(row["user"], row["prompt"], row["chosen"], row["rejected"]) for row in pairs]
        assert set(found) == expected
        assert len(found) == len(expected)  # none twice

    def test_what_is_left_out_is_counted(self):
        rows = [("p", "x", 5), ("p", "y", 5), ("p", "z", 1), ("q", "x", 2), ("q", "y", ""), ("", "y", 3)]
        table = read([{"user": "u", "prompt": p, "answer": r, "rating": s} for p, r, s in rows])
        assert table.pairs["chosen"][:] == ["x", "y"]
        for part in (
            "1 ties (the first: row 0)",
            "1 rows without a score (the first: row 4)",
            "1 rows without a prompt or a response",
        ):
            assert part in table.look[2]
        assert "1 responses that are the only one of their user and prompt (the first: row 3)" in table.look[2]

    @pytest.mark.parametrize("value", ["good", "nan", "NaN", "inf"])
    def test_a_score_that_is_no_number(self, value):
        """As a number "nan" is neither above another nor equal to it, so that the other response would have been chosen."""
        rows = [{"user": "u", "prompt": "p", "response": r, "score": s} for r, s in (("x", "3"), ("y", value))]
        with pytest.raises(DataError, match=f"row 1: the score '{value}' is no number"):
            read(rows)

    def test_a_rank_that_is_named_counts_before_a_score(self):
        rows = [{"user": "u", "prompt": "p", "response": r, "score": s, "rank": k} for r, s, k in (("x", 1, 1), ("y", 2, 2))]
        assert chosen(rows) == ["y"]
        assert chosen(rows, {"rank": "rank"}) == ["x"]


class TestColumns:
    def test_names_in_any_writing_are_recognized_and_said(self):
        rows = [
            {"Participant ID": "007", "Question": "q", "Answer 1": "x", "Answer 2": "y", "Winner": "2", "Age": 30, "Group": "g"}
        ]
        table = read(rows)
        assert table.pairs.to_list() == [{"prompt": "q", "chosen": "y", "rejected": "x", "user": "007", "group": "g"}]
        assert table.look[0] == (
            "survey.csv: 1 rows of A against B; columns user=Participant ID, prompt=Question, response_a=Answer 1, response_b=Answer 2, "
            "preferred=Winner, group=Group; not used: Age"
        )

    def test_every_name_is_recognized_as_one_thing_alone(self):
        names = [name for own in NAMES.values() for name in own]
        assert len(names) == len(set(names))

    def test_names_that_are_given(self):
        rows = [{"who": 1, "ask": "q", "good": "x", "bad": "y", "user": "somebody else", "group": "g"}]
        columns = {"user": "who", "prompt": "ask", "chosen": "good", "rejected": "bad", "group": ""}
        assert read(rows, columns).pairs.to_list() == [{"prompt": "q", "chosen": "x", "rejected": "y", "user": "1"}]

    @pytest.mark.parametrize(
        ("changes", "columns", "error", "match"),
        [
            ({}, {"user": "user_if"}, DataError, r"no column 'user_if' .*Did you mean --columns user=user_id\?"),
            ({"No. 1": 1}, {"user": "No 1"}, DataError, r"Did you mean --columns user='No\. 1'\?"),
            ({}, {"user": "xyz"}, DataError, "Write --columns user=COLUMN with one of them"),
            ({}, {"person": "user_id"}, ConfigError, "--columns names person, which is none of user, prompt"),
            ({"user_id": None}, {}, DataError, "no column says who judged. .* Name it: --columns user=COLUMN"),
            ({"rater": "x"}, {}, DataError, "no column says who judged. .* user could be user_id or rater"),
            ({"prompt": None}, {}, DataError, "no column holds the prompt. Its columns are user_id, response_a"),
            (
                {"preferred": None},
                {},
                DataError,
                "hold the judgments .* Recognized: user=user_id, prompt=prompt, response_a=.*b=COLUMN",
            ),
            ({}, {"chosen": "response_a"}, DataError, "which columns hold the judgments cannot be told"),
        ],
    )
    def test_columns_that_cannot_be_told(self, changes, columns, error, match):
        rows = [{name: value for name, value in {**row, **changes}.items() if value is not None} for row in survey("a", "b")]
        with pytest.raises(error, match=match):
            read(rows, columns)

    def test_two_columns_of_one_name(self):
        table = pd.DataFrame(survey("a", "b")).assign(group="x")
        with pytest.raises(DataError, match="The table has two columns 'group'"):
            read_table(pd.concat([table, table[["group"]]], axis=1), "The table")

    def test_the_order_of_time(self):
        for times in ((3, 1, 2), ("2024-03-01", "2023-01-01 12:00", "2023-02-01T00:00:00Z")):
            rows = [{**row, "timestamp": time} for row, time in zip(survey("a", "a", "a"), times, strict=True)]
            assert chosen(rows) == ["a1", "a2", "a0"]
            assert chosen(rows, {"time": ""}) == ["a0", "a1", "a2"]
        with pytest.raises(DataError, match="row 1: has no timestamp"):
            read([rows[0], {**rows[1], "timestamp": None}])


def test_pairs_that_say_nothing_are_counted():
    rows = survey("a", "a", "a", "a", "a", "a", "a", "b", group="g")
    rows[1] |= {"response_b": "a1"}
    rows[2] |= {"user_id": " "}
    rows[3] |= {"group": None}
    rows[4] |= {"prompt": ""}
    rows[5] = rows[0]
    rows[7] = {**rows[0], "preferred": "b"}
    table = read(rows)
    assert table.pairs["chosen"][:] == ["a0", "a6", "b0"]
    assert table.look[1] == "survey.csv: 1 users, 2 prompts, 3 pairs; pairs a user: 3 to 3, median 3"
    reasons = (
        "pairs of two equal responses",
        "pairs without a user",
        "pairs of users without a group",
        "rows without a prompt or a response",
    )
    expected = "; ".join(f"1 {reason} (the first: row {row})" for row, reason in enumerate(reasons, 1))
    assert table.look[2] == f"survey.csv: left out: {expected}; 1 pairs that their user gives twice (the first: row 5)"
    assert table.look[3] == "survey.csv: 1 pairs are given both ways round by one user; they stay"


def test_tables_of_pandas_and_of_datasets_hold_the_same(tmp_path):
    rows = [{**row, "user_id": n, "history": [], "response_a": talk("", "x")[1:]} for n, row in enumerate(survey("a", "b"))]
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    table = pd.read_parquet(tmp_path / "a.parquet")  # lists come as arrays
    assert isinstance(table["response_a"][0], np.ndarray)
    of_pandas, of_datasets = (read_table(given, "x").pairs.to_list() for given in (table, Dataset.from_list(rows)))
    assert of_pandas == of_datasets
    assert [row["user"] for row in of_pandas] == ["0", "1"]
    named = Dataset.from_list([{**row, "user_id": 0} for row in rows]).cast_column("user_id", ClassLabel(names=["ann"]))
    assert read_table(named, "x").pairs["user"][:] == ["ann", "ann"]
