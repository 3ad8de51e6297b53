"""What may be asked, and which answers are refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import OracleCall, OracleResult, check_weights
from trl_pafo.palm.core import checked_result


def test_weights_come_back_on_the_simplex_and_a_rounding_error_below_0_is_0() -> None:
    for given in (np.float32([0.1, 0.2, 0.7]), [1.0, 1e-10, -1e-10]):
        weights = check_weights(given, 3)
        assert weights.dtype == np.float64
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.6], "adding up to 1"),
        ([0.2, 0.3, 0.5], r"shape \(2,\)"),
        ([np.nan, 1.0], "NaN"),
        (["a", "b"], "must be numbers"),
    ],
)
def test_weights_off_the_simplex_are_refused(weights: list, message: str) -> None:
    with pytest.raises(PortfolioError, match=message):
        check_weights(weights, 2)


def test_rounding_over_the_edge_is_clipped() -> None:
    result = checked_result(OracleResult([1 + 1e-12, -1e-12], kl=-1e-9), 2, "Answer 7")
    assert np.array_equal(result.values, [1.0, 0.0])
    assert result.kl == 0.0


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"values": [0, 1]}, "got dict"),
        (OracleResult([0.5, -0.1]), r"are outside \[0, 1\]. Normalize"),
        (OracleResult([0.5, 0.5], kl=float("nan")), "`kl` must be a number of nats"),
        (OracleResult([0.5, 0.5], kl=-0.1), "not negative, got -0.1"),
        (OracleResult([0.5, 0.5], kl="much"), "`kl` must be a number, got 'much'"),
        (OracleResult([0.5, 0.5], prompt_values=[[0.1, 0.5]]), "mean of `prompt_values`"),
        (OracleResult([0.5, 0.5], kl=1.0, prompt_values=[[0.5, 0.5]], prompt_kl=[3.0]), "`kl` must be the mean of `prompt_kl`"),
        (OracleResult([0.5, 0.5], prompt_values=[[0.5, 0.5]], prompt_kl="much"), "`prompt_kl` must be numbers, got str"),
        (OracleResult([0.5, 0.5], prompt_kl=[[0.1], [0.2, 0.3]]), "`prompt_kl` must be numbers, got list"),
        (OracleResult([0.5, 0.5], prompt_values=[]), "`prompt_values` must have shape"),
        (OracleResult([0.5, 0.5], prompt_values=[[0.5, 0.5]], prompt_kl=[0.1, 0.2]), "`prompt_kl` must have shape"),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused(result: OracleResult, message: str) -> None:
    with pytest.raises(PortfolioError, match=message):
        checked_result(result, 2, "Answer 7")


def test_a_call_survives_json_to_the_last_digit() -> None:
    for weights, warm in ((np.array([1 / 3, 2 / 3]), False), (np.full(2, np.nan), True)):
        result = checked_result(OracleResult([0.1 + 0.2, 1 / 7], 1 / 9, Path("a/b"), [[0.1 + 0.2, 1 / 7]], [1 / 9]), 2, "")
        back = OracleCall.from_json(json.loads(json.dumps(OracleCall(weights, result, warm).to_json())), 2, "")
        assert np.array_equal(back.weights, weights, equal_nan=True)
        assert np.array_equal(back.result.values, result.values)
        assert np.array_equal(back.result.prompt_values, result.prompt_values)
        assert np.array_equal(back.result.prompt_kl, result.prompt_kl)
        assert (back.result.kl, back.result.policy, back.warm, back.asked) == (1 / 9, "a/b", warm, not warm)


def test_a_kl_that_is_not_given_is_that_of_the_prompts() -> None:
    known = OracleResult([0.5, 0.5], prompt_values=[[0.5, 0.5], [0.5, 0.5]], prompt_kl=[3.0, 1.0])
    assert checked_result(known, 2, "it", beta=0.1).kl == 2
    assert checked_result(OracleResult([0.5, 0.5]), 2, "it").kl == 0
