"""Files that people write: what is read, and what is refused with its place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trl_pafo.errors import DataError, PortfolioError
from trl_pafo.palm.files.inputs import read_answers, read_candidates, read_history, read_table, read_users
from trl_pafo.palm.oracles.candidates import CandidateOracle

NAMES = ("helpful", "brief")
TEXTS = {"prompt": "p", "chosen": "c", "rejected": "r"}
WEIGHTS = {"weights": [0.4, 0.6]}


@pytest.fixture
def lines(tmp_path: Path):
    def write(*rows: Any) -> Path:
        path = tmp_path / "x.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def test_candidates_with_different_numbers_of_responses(lines) -> None:
    rows = [
        {"prompt": "p", "responses": ["a", "b"], "rewards": [{"helpful": 0.1, "brief": 0.2}, {"brief": 0.4, "helpful": 0.3}]},
        {"id": 7, "rewards": [[0.5, 0.6], [0.7, 0.8], [0.9, 1.0]]},
    ]
    read = read_candidates(lines(*rows))
    assert read.names == NAMES
    assert read.rewards[0, :2].tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert np.isnan(read.rewards[0, 2]).all()
    assert read.reference == pytest.approx(np.array([[0.5, 0.5, 0.0], [1 / 3] * 3]))
    rows[0]["logprobs"], rows[1]["logprobs"] = [-7.0, float(np.log(3)) - 7], [0.0] * 3
    assert read_candidates(lines(*rows)).reference[0] == pytest.approx([0.25, 0.75, 0.0])


def test_a_long_response_is_a_candidate_however_improbable(lines) -> None:
    read = read_candidates(lines({"rewards": [[0.1, 0.2], [0.9, 0.8]], "logprobs": [-50.0, -900.0]}))
    for beta in (0.0, 1e-4):
        assert CandidateOracle(read.rewards, beta, read.reference)(np.array([0.5, 0.5])).values.tolist() == [0.9, 0.8]


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"rewards": [[0.1, 0.2]], "color": "red"}], "line 1 has the unknown entry `color`; known are rewards"),
        ([{"rewards": [[0.1, 0.2]]}, {"rewards": [[0.1]]}], r"prompts have \[1, 2\] rewards"),
        ([{"rewards": [[0.1, 0.2]], "logprobs": [0.0, 0.1]}], "line 1: 1 responses and 2 `logprobs`"),
        ([{"rewards": [[0.1, 0.2]], "logprobs": [0.0]}, {"rewards": [[0.1, 0.2]]}], "give them to all or to none"),
        ([{"rewards": [[0.1, 0.2], [0.3]]}], "line 1: `rewards` must be numbers"),
        ([{"rewards": [[0.1, None]]}], "line 1: `rewards` must be finite numbers"),
        ([{"rewards": [{"a": 1, "b": 2}, {"a": 1}]}], "every response needs the rewards a, b"),
        ([], "holds no rows"),
    ],
)
def test_candidates_that_cannot_be_used(rows: list, match: str, lines) -> None:
    with pytest.raises(DataError, match=match):
        read_candidates(lines(*rows))


def test_a_table_of_policies(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("policy,kl,helpful,brief,w_helpful,w_brief\na,0.5,0.9,0.1,1,0\n,0,0.2,0.8,,\n")
    table = read_table(tmp_path / "t.csv", beta=0.2)
    assert table.names == NAMES
    assert table.values.tolist() == [[0.9, 0.1], [0.2, 0.8]]
    assert table.kl.tolist() == [0.5, 0.0]
    assert [result.policy for result in table.results] == ["a", "policy 1"]
    (weights, first), second = table.warm_start()
    assert weights.tolist() == [1.0, 0.0]
    assert (first, second) == tuple(table.results)
    assert table(np.array([0.5, 0.5])).policy == "policy 1"  # (0.9 + 0.1) / 2 - 0.2 * 0.5 < (0.2 + 0.8) / 2
    (tmp_path / "r.csv").write_text("policy,helpful,brief\na,1,5\nb,3,2\n")
    assert read_table(tmp_path / "r.csv", reward_range=[1, 5]).values.tolist() == [[0.0, 1.0], [0.5, 0.25]]
    assert read_table(tmp_path / "t.csv", ["brief", "helpful"]).values.tolist() == [[0.1, 0.9], [0.8, 0.2]]


@pytest.mark.parametrize(
    ("text", "options", "match"),
    [
        ("policy,model,helpful,brief\na,llama,1,1\n", {}, "t.csv, a, column model: 'llama' must be numbers"),
        ("policy,helpful,brief\na,1,1\n", {"reward_names": ["helpful", "warm"]}, "asked for are helpful, warm"),
        ("policy,helpful\na,1\n", {}, "at least 2"),
        ("policy,helpful,brief\n", {}, "holds no rows"),
        ("policy,helpful,brief,w_helpful\na,1,1,1\n", {}, "a column w_NAME for every reward"),
        ("policy,helpful,brief\na,1,1\n", {"beta": 0.1}, "a has no `kl`, which the objective w.R - 0.1 KL needs"),
        ("policy,kl,helpful,brief\na,0,1,1\nb,,1,1\n", {}, "b has no `kl`, which others have; give it for all or for none"),
        ("policy,helpful,brief\na,1,1\na,0,1\n", {}, "two policies are named a"),
        ("policy,helpful,brief\na,1,4.5\n", {}, r"a, column brief: 4.5 is not in .* --reward_range LEAST GREATEST"),
        ("policy,KL,helpful,brief\na,0.1,1,1\n", {}, "the column KL would count as a reward"),
        ("W_brief,helpful,brief\n0.1,1,1\n", {}, "the column W_brief would count as a reward"),
        ("Unnamed: 0,policy,helpful,brief\n0,a,1,1\n", {}, "the column 'Unnamed: 0' has no name"),
    ],
)
def test_tables_that_cannot_be_used(text: str, options: dict, match: str, tmp_path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=match):
        read_table(tmp_path / "t.csv", **options)


def test_a_table_of_policies_in_json_lines(lines) -> None:
    row = {"helpful": 0.9, "brief": 0.1}
    assert read_table(lines({"policy": 1, **row}, row)).policies == ["1", "policy 1"]
    for second, match in [
        ({"helpful": 0.1}, "line 2 has other entries than the first policy"),
        ({**row, "warm": 1}, "line 2 has other entries"),
        ({"policy": "1", **row}, "two policies are named 1"),
        ({"policy": ["a"], **row}, r"column `policy`: .* got \['a'\]"),
    ]:
        with pytest.raises(DataError, match=match):
            read_table(lines({"policy": 1, **row}, second))


def test_users_answers_and_histories(lines) -> None:
    users = [{**WEIGHTS, "group": True, "user": 1.0}, {"weights": {"brief": 0.9, "helpful": 0.1}, "group": "True"}]
    weights, groups, names = read_users(lines(*users), NAMES)
    assert weights.tolist() == [[0.4, 0.6], [0.1, 0.9]]
    assert (groups, names) == (["True", "True"], ["1", "2"])  # labels of any type are text; a user without a name has its place
    answers = [
        {"first": [1, 0], "second": [0, 1], "liked": "second"},
        {"first": [1, 0], "second": {"brief": 1, "helpful": 0.5}, "liked": "first"},
    ]
    assert read_answers(lines(*answers), NAMES).tolist() == [[-1, 1], [0.5, -1]]
    assert read_history(lines({**TEXTS, "else": 1})) == [{**TEXTS, "else": 1, "user": None, "group": None}]


@pytest.mark.parametrize(
    ("read", "rows", "error", "match"),
    [
        (read_users, [{"weights": [0.4, 0.7]}], PortfolioError, "line 1: `weights` must lie on the simplex"),
        (read_users, [{"weights": [0.4, 0.3, 0.3]}], DataError, "holds 3 numbers for the 2 rewards helpful, brief"),
        (read_users, [{"weights": {"helpful": 1}}], DataError, "line 1: `weights` names helpful; the rewards are helpful, brief"),
        (read_users, [{**WEIGHTS, "age": 3}], DataError, "unknown entry `age`"),
        (read_users, [{**WEIGHTS, "user": 2.0}, {**WEIGHTS, "user": None}], DataError, "the user '2' occurs twice"),
        (read_users, [{**WEIGHTS, "group": "a"}, WEIGHTS], DataError, "line 2: 1 of 2 rows have no `group`; give it to all or"),
        (read_answers, [{"first": [1, 0], "second": [0, 1]}], DataError, "lacks `liked`"),
        (read_answers, [{"first": [1, 0], "second": [0, 1], "liked": "both"}], DataError, "must be first or second, got 'both'"),
        (lambda path, names: read_history(path), [{"prompt": "p", "chosen": "c"}], DataError, "line 1 lacks `rejected`"),
    ],
)
def test_lines_that_cannot_be_used(read: Any, rows: list, error: type, match: str, lines) -> None:
    with pytest.raises(error, match=match):
        read(lines(*rows), NAMES)


@pytest.mark.parametrize("missing", [None, float("nan"), "", "left out"])
@pytest.mark.parametrize("name", ["user", "group"])
def test_a_label_is_missing_whatever_stands_there(name: str, missing: Any, lines) -> None:
    rest = {} if missing == "left out" else {name: missing}
    with pytest.raises(DataError, match=f"line 2: 1 of 2 rows have no `{name}`"):
        read_history(lines({**TEXTS, name: 7}, {**TEXTS, **rest}))
    assert [row[name] for row in read_history(lines(*[{**TEXTS, **rest}] * 2))] == [None, None]
    assert read_users(lines(*[{**WEIGHTS, **rest}] * 2), NAMES)[1:] == (None, ["1", "2"])
