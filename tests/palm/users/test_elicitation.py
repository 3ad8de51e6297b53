"""Members from pairwise answers, against linear programs and samples."""

import numpy as np
import pytest
from helpers.fronts import Finite, Sphere
from scipy.optimize import linprog

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import Interview, Pool, Portfolio, build_portfolio, question_pool


@pytest.fixture(scope="module")
def portfolio() -> Portfolio:
    return build_portfolio(Sphere(), 3, 0.1, progress=False)


@pytest.fixture(scope="module")
def pool() -> np.ndarray:
    return question_pool(np.random.default_rng(0).random((60, 4, 3)), 150)[0]


def test_least_maximal_regret_is_that_of_linear_programs(portfolio: Portfolio, pool: np.ndarray) -> None:
    """With the members as reference, the regret of j is max_k max_w w.(v_k - v_j): a program for each pair."""
    costs = np.zeros(len(portfolio))
    additive = build_portfolio(Finite(portfolio.values), 3, 0.0, 0.01, progress=False)
    interview = Interview(additive, pool, reference=Pool(portfolio.values, costs))
    weights = np.array([0.5, 0.2, 0.3])
    for question in range(6):
        interview.answer(question, bool(weights @ pool[question] > 0))
    signed = pool[:6] * np.where(pool[:6] @ weights > 0, 1, -1)[:, None]
    regrets = []
    for own in additive.values:
        worst = [
            -linprog(-(other - own), -signed, np.zeros(6), np.ones((1, 3)), [1.0], bounds=(0, 1)).fun
            for other in portfolio.values
        ]
        regrets.append(max(worst))
    found = interview.recommend()
    assert found.gap == pytest.approx(min(regrets), abs=1e-9)
    assert regrets[found.member] == pytest.approx(min(regrets), abs=1e-9)


def test_the_gap_holds_for_all_weights_that_fit(portfolio: Portfolio, pool: np.ndarray) -> None:
    weights = np.array([0.1, 0.6, 0.3])
    interview = Interview(portfolio, pool)
    before = interview.recommend().gap
    for _ in range(4):
        question = interview.next_question()
        assert question is not None
        interview.answer(question, bool(weights @ pool[question] > 0))
    member, gap = interview.recommend()
    assert gap < before
    samples = np.random.default_rng(0).dirichlet(np.ones(3), 50_000)
    signed = np.array([difference if first else -difference for difference, first in interview.answers])
    fitting = samples[(samples @ signed.T >= 0).all(axis=1)]
    assert len(fitting) > 20
    missed = 1 - fitting @ portfolio.values[member] / portfolio.upper_bound.at(fitting)
    assert missed.max() <= gap + 1e-9
    assert missed.max() > gap - 0.05
    assert 1 - portfolio.values[member] @ weights / np.linalg.norm(weights) <= gap


@pytest.fixture(scope="module")
def two() -> Portfolio:
    return build_portfolio(Sphere(), 2, 0.1, progress=False)


def test_no_question_is_asked_whose_answer_is_known(two: Portfolio) -> None:
    interview = Interview(two, [[0.5, 0.5], [0.4, -0.4], [0.2, -0.2]])  # the last says what the second does
    assert interview.next_question() in (1, 2)
    interview.answer(1, True)
    assert interview.next_question() is None


def test_contradictions_are_named_and_a_tolerance_lets_them_pass(two: Portfolio) -> None:
    questions = [[0.5, -0.5], [-0.4, 0.3]]  # likes the first reward more than 0.5, and less than 0.43
    interview = Interview(two, questions)
    interview.answer(0, True)
    with pytest.raises(PortfolioError, match=r"No weights fit answer 2 and those before.*WeightPosterior"):
        interview.answer(1, True)
    assert len(interview.answers) == 1
    lenient = Interview(two, questions, tolerance=0.1)
    lenient.answer(0, True)
    lenient.answer(1, True)
    assert lenient.consistent.points[:, 0].min() == pytest.approx(0.4)  # w - (1 - w) >= -0.2
    assert lenient.consistent.points[:, 0].max() == pytest.approx(4 / 7)  # 0.3 - 0.7 w >= -0.1


def test_questions_are_pairs_that_trade_one_reward_for_another() -> None:
    rewards = np.random.default_rng(1).random((5, 4, 3))
    rewards[0, 3] = np.nan
    differences, places = question_pool(rewards, 12, seed=2)
    assert differences.shape == (12, 3)
    for difference, (prompt, first, second) in zip(differences, places, strict=True):
        assert np.array_equal(difference, rewards[prompt, first] - rewards[prompt, second])
        assert difference.min() < 0 < difference.max()
    assert len({tuple(row) for row in places.tolist()}) == 12
    assert len(question_pool(rewards, 1000)[0]) < 1000


@pytest.mark.parametrize(
    ("questions", "options", "match"),
    [
        ([[0.1, 0.2]], {}, r"shape \(num_questions, 3\)"),
        ([[0.1, 0.2, np.nan]], {}, "NaN"),
        ([[0.1, 0.2, 0.3]], {"tolerance": -1.0}, "tolerance must not be negative"),
    ],
)
def test_bad_input(portfolio: Portfolio, questions: list, options: dict, match: str) -> None:
    with pytest.raises(PortfolioError, match=match):
        Interview(portfolio, questions, **options)
    with pytest.raises(PortfolioError, match="There is no question 3"):
        Interview(portfolio, [[0.1, -0.2, 0.3]]).answer(3, True)
    for rewards, message in (
        ([[[0.1, 0.1], [0.2, 0.2]]], "trade one reward for another"),
        ([[0.1, 0.1]], "num_prompts, num_cand"),
    ):
        with pytest.raises(PortfolioError, match=message):
            question_pool(rewards)
