"""What may be asked, and which answers are refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import OracleCall, OracleResult, check_weights
from trl_pafo.palm.core import checked_result, policy_to_json


def check(result: OracleResult, reward_range: tuple[float, float] = (0.0, 1.0)) -> OracleResult:
    return checked_result(result, 2, reward_range, "Answer 7")


def test_weights_come_back_on_the_simplex() -> None:
    weights = check_weights(np.float32([0.1, 0.2, 0.7]), 3)
    assert weights.dtype == np.float64
    assert weights.sum() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.6], "adding up to 1"),
        ([1.5, -0.5], "none negative"),
        ([0.2, 0.3, 0.5], r"shape \(2,\)"),
        ([np.nan, 1.0], "NaN"),
        (["a", "b"], "must be numbers"),
    ],
)
def test_weights_off_the_simplex_are_refused(weights: list, message: str) -> None:
    with pytest.raises(PortfolioError, match=message):
        check_weights(weights, 2)


def test_rounding_over_the_edge_is_clipped() -> None:
    result = check(OracleResult([1 + 1e-12, -1e-12], kl=-1e-9))
    assert np.array_equal(result.values, [1.0, 0.0])
    assert result.kl == 0.0


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"values": [0, 1]}, "got dict"),
        (OracleResult([0.5, np.nan]), "Answer 7: `values` holds NaN"),
        (OracleResult([0.5, 0.5, 0.5]), r"must have shape \(2,\), got \(3,\)"),
        (OracleResult([0.5, -0.1]), "not negative; with epsilon=0"),
        (OracleResult([0.5, 1.1]), r"leave the range \[0, 1\]"),
        (OracleResult([0.5, 0.5], kl=float("nan")), "`kl` must be a number of nats"),
        (OracleResult([0.5, 0.5], kl=-0.1), "not negative, got -0.1"),
        (OracleResult([0.5, 0.5], kl="much"), "`kl` must be a number, got 'much'"),
        (OracleResult([0.5, 0.5], prompt_values=[[0.1, 0.5]]), "mean of `prompt_values`"),
        (OracleResult([0.5, 0.5], prompt_values=[[0.5]]), "`prompt_values` must have shape"),
        (OracleResult([0.5, 0.5], prompt_values=[]), "`prompt_values` must have shape"),
        (OracleResult([0.5, 0.5], prompt_values=[[0.5, 0.5]], prompt_kl=[0.1, 0.2]), "`prompt_kl` must have shape"),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused(result: OracleResult, message: str) -> None:
    with pytest.raises(PortfolioError, match=message):
        check(result)


def test_another_range_lets_other_values_pass() -> None:
    assert check(OracleResult([-3.0, 4.0]), (-5.0, 5.0)).values[0] == -3.0


def test_a_call_survives_json_to_the_last_digit() -> None:
    weights = np.array([1 / 3, 2 / 3])
    result = check(OracleResult([0.1 + 0.2, 1 / 7], 1 / 9, Path("a/b"), [[0.1 + 0.2, 1 / 7]], [1 / 9]))
    back = OracleCall.from_json(json.loads(json.dumps(OracleCall(weights, result).to_json())))
    assert np.array_equal(back.weights, weights)
    assert np.array_equal(back.result.values, result.values)
    assert np.array_equal(back.result.prompt_values, result.prompt_values)
    assert np.array_equal(back.result.prompt_kl, result.prompt_kl)
    assert (back.result.kl, back.result.policy, back.warm) == (1 / 9, "a/b", False)


def test_a_policy_of_unknown_weights_stays_one() -> None:
    call = OracleCall(np.full(2, np.nan), check(OracleResult([0.1, 0.2])), warm=True)
    back = OracleCall.from_json(json.loads(json.dumps(call.to_json())))
    assert not back.asked
    assert back.warm


def test_an_object_cannot_be_written() -> None:
    with pytest.raises(PortfolioError, match=r"type object cannot be written.*return its path"):
        policy_to_json(object())
