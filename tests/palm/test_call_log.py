"""Answers on disk: none is lost, none of another problem is taken."""

import json
from pathlib import Path

import numpy as np
import pytest

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import OracleCall, OracleResult
from trl_pafo.palm.call_log import CallLog

PROBLEM = {"num_rewards": 2, "beta": 0.0, "reward_range": [0.0, 1.0], "problem": {"base": "tiny"}}


def call(place: int) -> OracleCall:
    weights = np.array([1 / (place + 3), 1 - 1 / (place + 3)])
    return OracleCall(weights, OracleResult(np.array([0.1 * place, 1 / 3]), kl=0.1, policy=f"adapter_{place}"))


def three_calls(path: Path) -> None:
    log = CallLog(path, PROBLEM)
    for place in range(3):
        log.append(call(place))


def test_calls_come_back_as_they_were(tmp_path: Path) -> None:
    three_calls(tmp_path / "deep" / "calls.jsonl")
    back = CallLog(tmp_path / "deep" / "calls.jsonl", PROBLEM).calls
    assert [c.result.policy for c in back] == ["adapter_0", "adapter_1", "adapter_2"]
    assert all(np.array_equal(c.weights, call(place).weights) for place, c in enumerate(back))
    assert all(np.array_equal(c.result.values, call(place).result.values) for place, c in enumerate(back))


def test_each_answer_is_on_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr("os.fsync", lambda number: synced.append((tmp_path / "calls.jsonl").read_text().count("\n")))
    three_calls(tmp_path / "calls.jsonl")
    assert synced == [1, 2, 3, 4]


@pytest.mark.parametrize("cut", [1, 20])
def test_a_line_that_was_being_written_is_dropped_and_the_file_goes_on(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "calls.jsonl"
    three_calls(path)
    path.write_bytes(path.read_bytes()[:-cut])
    log = CallLog(path, PROBLEM)
    assert [c.result.policy for c in log.calls] == ["adapter_0", "adapter_1"]
    log.append(call(7))
    assert [c.result.policy for c in CallLog(path, PROBLEM).calls] == ["adapter_0", "adapter_1", "adapter_7"]


def test_killed_while_the_first_line_was_written(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_text('{"line": "prob')
    CallLog(path, PROBLEM).append(call(0))
    assert len(CallLog(path, PROBLEM).calls) == 1


def test_another_problem_is_refused_and_the_file_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    three_calls(path)
    before = path.read_bytes()
    with pytest.raises(PortfolioError, match=r"another problem \(problem: \{'base': 'tiny'\} -> \{'base': 'large'\}\)"):
        CallLog(path, {**PROBLEM, "problem": {"base": "large"}})
    with pytest.raises(PortfolioError, match=r"beta: 0\.0 -> 0\.1"):
        CallLog(path, {**PROBLEM, "beta": 0.1})
    assert path.read_bytes() == before


def test_a_damaged_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    three_calls(path)
    lines = path.read_text().splitlines()
    for damaged, message in [("{", "line 3 cannot be read"), ('{"line": "call"}', "line 3 cannot be read"), ("[]", "line 3")]:
        path.write_text("\n".join([*lines[:2], damaged, *lines[3:]]) + "\n")
        with pytest.raises(PortfolioError, match=message):
            CallLog(path, PROBLEM)
    row = json.loads(lines[2])
    path.write_text("\n".join([*lines[:2], json.dumps({**row, "values": [0.1, 7]}), *lines[3:]]) + "\n")
    with pytest.raises(PortfolioError, match=r"line 3: the values .* leave the range"):
        CallLog(path, PROBLEM)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PortfolioError, match="`problem` must hold JSON values"):
        CallLog(tmp_path / "calls.jsonl", {**PROBLEM, "problem": object()})
    (tmp_path / "file").write_text("")
    with pytest.raises(PortfolioError, match="Choose another folder"):
        CallLog(tmp_path / "file" / "calls.jsonl", PROBLEM)
    log = CallLog(tmp_path / "calls.jsonl", PROBLEM)
    with pytest.raises(PortfolioError, match="cannot be written to a file"):
        log.append(OracleCall(np.array([0.5, 0.5]), OracleResult(np.array([0.1, 0.2]), policy=object())))
