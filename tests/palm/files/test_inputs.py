"""Files that people write: what is read, and what is refused with its place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trl_pafo.errors import DataError, PortfolioError
from trl_pafo.palm.files.inputs import read_answers, read_candidates, read_history, read_table, read_users

NAMES = ("helpful", "brief")


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_candidates_of_arrays(tmp_path) -> None:
    rewards, logprobs = np.random.default_rng(0).random((4, 3, 2)), np.log([[0.2, 0.3, 0.5]] * 4) - 7
    np.savez(tmp_path / "c.npz", rewards=rewards, logprobs=logprobs, names=list(NAMES))
    read = read_candidates(tmp_path / "c.npz")
    assert np.array_equal(read.rewards, rewards)
    assert read.reference == pytest.approx(np.tile([0.2, 0.3, 0.5], (4, 1)))
    assert read.names == NAMES
    np.savez(tmp_path / "d.npz", rewards=rewards, reference=np.full((4, 3), 1 / 3))
    assert read_candidates(tmp_path / "d.npz").names is None


def test_candidates_of_lines_with_different_numbers_of_responses(tmp_path) -> None:
    rows = [
        {"prompt": "p", "responses": ["a", "b"], "rewards": [{"helpful": 0.1, "brief": 0.2}, {"brief": 0.4, "helpful": 0.3}]},
        {"id": 7, "rewards": [[0.5, 0.6], [0.7, 0.8], [0.9, 1.0]]},
    ]
    read = read_candidates(lines(tmp_path / "c.jsonl", rows))
    assert read.names == NAMES
    assert read.rewards[0, :2].tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert np.isnan(read.rewards[0, 2]).all()
    assert read.reference == pytest.approx(np.array([[0.5, 0.5, 0.0], [1 / 3] * 3]))
    rows[0]["logprobs"], rows[1]["logprobs"] = [0.0, float(np.log(3))], [0.0] * 3
    assert read_candidates(lines(tmp_path / "d.jsonl", rows)).reference[0] == pytest.approx([0.25, 0.75, 0.0])


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"rewards": [[0.1, 0.2]], "color": "red"}], "line 1 has the unknown entry `color`; known are rewards"),
        ([{"prompt": "p"}], "line 1 lacks `rewards`"),
        ([{"rewards": [[0.1, 0.2]]}, {"rewards": [[0.1]]}], r"prompts have \[1, 2\] rewards"),
        ([{"rewards": [[0.1, 0.2]], "logprobs": [0.0, 0.1]}], "line 1: 1 responses and 2 `logprobs`"),
        ([{"rewards": [[0.1, 0.2]], "logprobs": [0.0]}, {"rewards": [[0.1, 0.2]]}], "give them to all or to none"),
        ([{"rewards": [[0.1, 0.2], [0.3]]}], "line 1: `rewards` must be numbers"),
        ([{"rewards": [[0.1, None]]}], "line 1: `rewards` must be finite numbers"),
        ([{"rewards": [{"a": 1, "b": 2}, {"a": 1}]}], "every response needs the rewards a, b"),
        (["text"], "line 1: expected a JSON object, got str"),
        ([], "holds no rows"),
    ],
)
def test_lines_of_candidates_that_cannot_be_used(rows: list, match: str, tmp_path) -> None:
    with pytest.raises(DataError, match=match):
        read_candidates(lines(tmp_path / "c.jsonl", rows))


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"reward": np.zeros((1, 2, 2))}, "lacks `rewards`"),
        ({"rewards": np.zeros((1, 2, 2)), "beta": np.zeros(1)}, "unknown entry `beta`"),
        ({"rewards": np.zeros((2, 2))}, "must be finite numbers with 3 axes"),
        ({"rewards": np.zeros((1, 2, 2)), "logprobs": np.zeros(2)}, r"must have shape \(1, 2\)"),
        ({"rewards": np.zeros((1, 2, 2)), "logprobs": np.zeros((1, 2)), "reference": np.zeros((1, 2))}, "not both"),
        ({"rewards": np.zeros((1, 2, 2)), "names": ["a"]}, "1 `names` for 2 rewards"),
        ({"rewards": np.array([[["a"]]], dtype=object)}, "without objects"),
    ],
)
def test_arrays_of_candidates_that_cannot_be_used(arrays: dict, match: str, tmp_path) -> None:
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(DataError, match=match):
        read_candidates(tmp_path / "c.npz")


def test_a_table_of_policies(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("policy,kl,helpful,brief,w_helpful,w_brief\na,0.5,0.9,0.1,1,0\nb,,0.2,0.8,,\n")
    table = read_table(tmp_path / "t.csv")
    assert table.names == NAMES
    assert table.values.tolist() == [[0.9, 0.1], [0.2, 0.8]]
    assert table.kl.tolist() == [0.5, 0.0]
    assert [result.policy for result in table.results] == ["a", "b"]
    (weights, first), second = table.warm_start()
    assert weights.tolist() == [1.0, 0.0]
    assert (first, second) == tuple(table.results)
    assert table(np.array([0.3, 0.7])).policy == "b"
    rows = [
        {"values": {"brief": 0.8, "helpful": 0.2}, "kl": 2.0},
        {"values": {"helpful": 0.5, "brief": 0.5}, "policy": "x", "kl": 0},
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    table = read_table(tmp_path / "t.json", NAMES, beta=0.2)
    assert table.values.tolist() == [[0.2, 0.8], [0.5, 0.5]]
    assert table(np.array([0.0, 1.0])).policy == "x"  # 0.8 - 0.2 * 2 < 0.5
    assert table.results[0].policy == "policy 0"


@pytest.mark.parametrize(
    ("text", "options", "match"),
    [
        ("policy,model,helpful,brief\na,llama,1,1\n", {}, "policy 1: values must be numbers"),
        ("policy,helpful,brief\na,1,\n", {}, "policy 1: values must be"),
        ("policy,helpful,brief\na,1,1\n", {"reward_names": ["helpful", "warm"]}, "asked for are helpful, warm"),
        ("policy,helpful\na,1\n", {}, "at least 2"),
        ("policy,helpful,brief\n", {}, "holds no rows"),
        ("policy,helpful,brief,w_helpful\na,1,1,1\n", {}, "a column w_NAME for every reward"),
        ("policy,helpful,brief,w_color\na,1,1,1\n", {}, "a column w_NAME for every reward"),
        ("policy,helpful,brief\na,1,1\n", {"beta": 0.1}, "policy 1 has no `kl`"),
        (",policy,helpful,brief\n0,a,1,1\n", {}, "the column '' has no name"),
        ("Unnamed: 0,policy,helpful,brief\n0,a,1,1\n", {}, "the column 'Unnamed: 0' has no name"),
        ("helpful,brief,brief\n1,1,1\n", {}, "line 1: the header names a column twice"),
    ],
)
def test_tables_that_cannot_be_used(text: str, options: dict, match: str, tmp_path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=match):
        read_table(tmp_path / "t.csv", **options)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{}", "line 1 lacks `values`"),
        ("[1]", "entry 1: expected a JSON object, got int"),
        ('[{"values": {"a": 1, "b": 1}, "color": 1}]', "unknown entry `color`"),
        ('[{"values": [1, 2]}]', "must map names of rewards"),
        ('[{"values": {"a": 1, "b": 1}}, {"values": {"a": 1}}]', "policy 2: values and weights must be given for each of a, b"),
        ("nonsense", "line 1: not JSON"),
    ],
)
def test_json_tables_that_cannot_be_used(content: str, match: str, tmp_path) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(DataError, match=match):
        read_table(tmp_path / "t.json")


def test_weights_of_a_table_lie_on_the_simplex(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("helpful,brief,w_helpful,w_brief\n1,1,0.5,0.6\n")
    with pytest.raises(PortfolioError, match="adding up to 1"):
        read_table(tmp_path / "t.csv")


def test_users_answers_and_histories(tmp_path) -> None:
    rows = [{"weights": [0.4, 0.6], "group": "a", "user": "u"}, {"weights": {"brief": 0.9, "helpful": 0.1}, "group": "b"}]
    weights, groups, users = read_users(lines(tmp_path / "u.jsonl", rows), NAMES)
    assert weights.tolist() == [[0.4, 0.6], [0.1, 0.9]]
    assert (groups, users) == (["a", "b"], ["u", "2"])
    rows = [
        {"first": [1, 0], "second": [0, 1], "liked": "second"},
        {"first": [1, 0], "second": {"brief": 1, "helpful": 0.5}, "liked": "first"},
    ]
    assert read_answers(lines(tmp_path / "a.jsonl", rows), NAMES).tolist() == [[-1, 1], [0.5, -1]]
    rows = [{"prompt": "p", "chosen": "c", "rejected": "r", "else": 1}]
    assert read_history(lines(tmp_path / "h.jsonl", rows)) == [{**rows[0], "user": None, "group": None}]


@pytest.mark.parametrize(
    ("read", "row", "error", "match"),
    [
        (read_users, {"weights": [0.4, 0.7]}, PortfolioError, "line 1: `weights` must lie on the simplex"),
        (read_users, {"weights": [0.4, 0.3, 0.3]}, DataError, "holds 3 numbers for the 2 rewards helpful, brief"),
        (read_users, {"weights": {"helpful": 1}}, DataError, "line 1: `weights` names helpful; the rewards are helpful, brief"),
        (read_users, {"weights": [0.4, 0.6], "age": 3}, DataError, "unknown entry `age`"),
        (read_answers, {"first": [1, 0], "second": [0, 1]}, DataError, "lacks `liked`"),
        (read_answers, {"first": [1, 0], "second": [0, 1], "liked": "both"}, DataError, "must be first or second, got 'both'"),
    ],
)
def test_lines_that_cannot_be_used(read: Any, row: dict, error: type, match: str, tmp_path) -> None:
    with pytest.raises(error, match=match):
        read(lines(tmp_path / "x.jsonl", [row]), NAMES)


def test_groups_for_some_users_only(tmp_path) -> None:
    rows = [{"weights": [0.4, 0.6], "group": "a"}, {"weights": [0.4, 0.6]}]
    with pytest.raises(DataError, match="line 2: 1 of 2 rows have no `group`; give it to all or to none"):
        read_users(lines(tmp_path / "u.jsonl", rows), NAMES)


@pytest.mark.parametrize("missing", [None, float("nan"), "", "left out"])
@pytest.mark.parametrize("name", ["user", "group"])
def test_a_label_is_missing_whatever_stands_there(name: str, missing: Any, tmp_path) -> None:
    weights, texts = {"weights": [0.4, 0.6]}, {"prompt": "p", "chosen": "c", "rejected": "r"}
    rest = {} if missing == "left out" else {name: missing}
    with pytest.raises(DataError, match=f"line 2: 1 of 2 rows have no `{name}`"):
        read_history(lines(tmp_path / "h.jsonl", [{**texts, name: 7}, {**texts, **rest}]))
    assert [row[name] for row in read_history(lines(tmp_path / "h.jsonl", [{**texts, **rest}] * 2))] == [None, None]
    assert read_users(lines(tmp_path / "u.jsonl", [{**weights, **rest}] * 2), NAMES)[1:] == (None, ["1", "2"])
    with pytest.raises(
        DataError, match="the user '2' occurs twice; give one line a user"
    ):  # one of them has no name but its line
        read_users(lines(tmp_path / "u.jsonl", [{**weights, "user": 2.0}, {**weights, "user": None}]), NAMES)


def test_labels_of_any_kind_are_texts(tmp_path) -> None:
    rows = [{"weights": [0.4, 0.6], "user": 1.0, "group": True}, {"weights": [0.4, 0.6], "user": 2, "group": "True"}]
    _, groups, users = read_users(lines(tmp_path / "u.jsonl", rows), NAMES)
    assert (groups, users) == (["True", "True"], ["1", "2"])
    with pytest.raises(DataError, match="line 1 lacks `rejected`"):
        read_history(lines(tmp_path / "h.jsonl", [{"prompt": "p", "chosen": "c"}]))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_history(tmp_path / "b.jsonl")
