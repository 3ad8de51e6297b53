"""Answers on disk: none is lost, none of another problem is taken."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.parts import full_after

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import OracleCall, OracleResult
from trl_pafo.palm.call_log import CallLog

PROBLEM = {"num_rewards": 2, "beta": 0.0, "problem": {"base": "tiny"}}


def call(place: int) -> OracleCall:
    weights = np.array([1 / (place + 3), 1 - 1 / (place + 3)])
    return OracleCall(weights, OracleResult(np.array([0.1 * place, 1 / 3]), kl=0.1, policy=f"adapter_{place}"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of three answers."""
    log = CallLog(tmp_path / "deep" / "calls.jsonl", PROBLEM)
    for place in range(3):
        log.append(call(place))
    return log.path


def policies(path: Path) -> list[str]:
    return [c.result.policy for c in CallLog(path, PROBLEM).calls]


def test_each_answer_is_on_disk_before_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr("os.fsync", lambda number: synced.append(path.read_text().count("\n")))
    log = CallLog(path, PROBLEM)
    log.append(call(3))
    log.append(call(4))
    assert synced == [5, 6]


@pytest.mark.parametrize("cut", [1, 20, 10_000])
def test_a_line_that_was_being_written_is_dropped_and_the_file_goes_on(path: Path, cut: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: max(len(content) - cut, 10)])  # at last, the first line itself
    kept = ["adapter_0", "adapter_1"] if cut < 10_000 else []
    log = CallLog(path, PROBLEM)
    log.append(call(7))
    assert policies(path) == [*kept, "adapter_7"]


def test_another_problem_is_refused_and_the_file_left_alone(path: Path) -> None:
    before = path.read_bytes()
    changed = r"beta: 0\.0 -> 0\.1; problem: \{'base': 'tiny'\} -> \{'base': 'large'\}"
    with pytest.raises(PortfolioError, match=f"a different problem.*{changed}"):
        CallLog(path, {**PROBLEM, "beta": 0.1, "problem": {"base": "large"}})
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["caller,minutes", '{"caller": 1}\n{"caller": 2}'])
def test_a_file_of_somebody_else_is_left_alone(text: str, tmp_path: Path) -> None:
    (tmp_path / "calls.jsonl").write_text(text)
    with pytest.raises(PortfolioError, match="Choose another folder"):
        CallLog(tmp_path / "calls.jsonl", PROBLEM)
    assert (tmp_path / "calls.jsonl").read_text() == text


def test_a_damaged_line_is_refused(path: Path) -> None:
    lines = path.read_text().splitlines()
    answer = json.loads(lines[2])
    for number, damaged, message in [
        (3, "{", " cannot be read"),
        (3, "{}", " cannot be read"),
        (3, "[]", " cannot be read"),
        (3, "\xff", " cannot be read"),
        (1, "[]", " cannot be read"),
        (3, json.dumps({**answer, "values": [0.1, 7]}), ": the values .* are outside"),
        (3, json.dumps({**answer, "weights": [0.5, 7]}), ": `weights` must lie on the simplex"),
    ]:
        path.write_text("\n".join([*lines[: number - 1], damaged, *lines[number:]]) + "\n", encoding="latin-1")
        with pytest.raises(PortfolioError, match=rf"calls\.jsonl, line {number}{message}"):
            CallLog(path, PROBLEM)


def test_an_answer_that_does_not_fit_on_the_disk_is_no_answer(path: Path) -> None:
    log = CallLog(path, PROBLEM)
    with (
        full_after(path.stat().st_size + 20),
        pytest.raises(PortfolioError, match=r"calls\.jsonl cannot be written: .*Free some space"),
    ):
        log.append(call(3))
    assert len(log.calls) == 3
    assert policies(path) == ["adapter_0", "adapter_1", "adapter_2"]


def test_what_cannot_be_written_is_refused(path: Path) -> None:
    with pytest.raises(PortfolioError, match="`problem` must hold JSON values"):
        CallLog(path, {**PROBLEM, "problem": object()})
    with pytest.raises(PortfolioError, match="Choose another folder"):
        CallLog(path / "calls.jsonl", PROBLEM)
    with pytest.raises(PortfolioError, match=r"type object cannot be written.*return its path"):
        CallLog(path, PROBLEM).append(OracleCall(np.array([0.5, 0.5]), OracleResult(np.array([0.1, 0.2]), policy=object())))
