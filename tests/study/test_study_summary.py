"""Means over runs, with intervals, against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from trl_pafo.study.rows import complete
from trl_pafo.study.summary import mean_with_interval, summarize


@pytest.mark.parametrize("number", [2, 10])
def test_a_mean_has_the_interval_of_scipy(number):
    values = np.random.default_rng(number).uniform(0.4, 0.9, number)
    found = mean_with_interval(values.tolist())
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found == pytest.approx({"value": values.mean(), "low": expected.low, "high": expected.high}, abs=1e-12)


def test_what_is_not_known_does_not_count_and_one_run_has_no_interval():
    assert mean_with_interval([0.2, math.nan, 0.4]) == mean_with_interval([0.2, 0.4])
    found = mean_with_interval([0.2, math.nan])
    assert (found["value"], math.isnan(found["low"]), math.isnan(found["high"])) == (0.2, True, True)
    assert math.isnan(mean_with_interval([])["value"])


def as_table(rows):
    return [complete(row) for row in rows]


def rows(method, seed, accuracies, differences, verdict="", **more):
    """Of a run: majority, minority and all pairs."""
    of_run = {"data": "d", "setting": "s", "population_seed": 1, "seed": seed, "method": method, "verdict": verdict, **more}
    roles = ("majority", "minority", "overall")
    return [
        of_run | {"role": role, "accuracy": accuracy, "difference": difference}
        for role, accuracy, difference in zip(roles, accuracies, differences, strict=True)
    ]


def test_a_summary_is_over_the_runs_of_a_method():
    [found] = summarize(
        as_table(
            [
                *rows("personalized_bt", 1, (0.9, 0.5, 0.8), (0, 0, 0), steps=10),
                *rows("personalized_bt@1", 1, (0.9, 0.4, 0.8), (0, -0.1, 0)),
                *rows("pafo", 1, (0.9, 0.6, 0.8), (0, 0.1, 0), "improves", steps=20, steps_in_all=50),
                *rows("group_routed", 1, (1, 0.9, 0.9), (0.1, 0.4, 0.1), "improves"),
                *rows("personalized_bt", 2, (0.8, 0.5, 0.8), (0, 0, 0), steps=30),
                *rows("pafo", 2, (0.9, 0.7, 0.8), (0.1, 0.2, 0), "cannot tell", steps=20, steps_in_all=70),
                *rows("group_routed", 2, (1, 0.9, 0.9), (0.2, 0.3, 0.1), "improves"),
                *rows("personalized_bt", 3, (0.8, 0.5, 0.8), (0, 0, 0)),
                {"data": "d", "setting": "s", "population_seed": 1, "seed": 3, "method": "pafo", "error": "no memory"},
            ]
        )
    ).values()
    assert [summary.method for summary in found] == ["personalized_bt", "pafo", "group_routed", "personalized_bt@1"]
    pafo = found[1]
    assert (pafo.runs, pafo.failed, pafo.verdicts) == (2, 1, {"improves": 1, "cannot tell": 1})
    assert (pafo.steps, pafo.steps_in_all, found[0].steps) == (20, 60, 20)
    assert pafo.accuracy["minority"] == mean_with_interval([0.6, 0.7])
    assert pafo.difference["majority"] == mean_with_interval([0, 0.1])
    assert pafo.way == pytest.approx((0 + 0.1 + 0.1 + 0.2) / (0.1 + 0.4 + 0.2 + 0.3))  # of the runs that both have
    assert found[2].way == pytest.approx(1)
    assert found[3].way == pytest.approx(-0.1 / 0.5)
    assert found[3].is_point


def test_teachers_that_gain_nothing_are_the_end_of_no_way():
    table = as_table([*rows("pafo", 1, (1, 1, 1), (0.1, 0, 0)), *rows("group_routed", 1, (1, 1, 1), (-0.1, 0, 0))])
    assert math.isnan(summarize(table)["d", "s"][0].way)
