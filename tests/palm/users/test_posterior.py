"""The posterior against integration on a grid, the fit against a search on it."""

import numpy as np
import pytest
from helpers.fronts import Sphere
from scipy.special import expit

from trl_pafo.errors import DataError, PortfolioError
from trl_pafo.palm import (
    NoisyInterview,
    Portfolio,
    RewardScale,
    WeightPosterior,
    build_portfolio,
    fit_weights,
    history_differences,
    question_pool,
)

STEPS = 60
GRID = np.array([(i, j, STEPS - i - j) for i in range(STEPS + 1) for j in range(STEPS + 1 - i)]) / STEPS


@pytest.fixture(scope="module")
def portfolio() -> Portfolio:
    return build_portfolio(Sphere(), 3, 0.1, progress=False)


def answers(weights: np.ndarray, number: int, sharpness: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    differences = rng.uniform(-1, 1, (number, len(weights)))
    liked = rng.random(number) < expit(sharpness * differences @ weights)
    return differences * np.where(liked, 1, -1)[:, None]


def on_grid(differences: np.ndarray, sharpness: float) -> np.ndarray:
    """Posterior probabilities on the grid: every point alike before the answers."""
    log = -np.logaddexp(0, -sharpness * GRID @ differences.T).sum(axis=1)
    chances = np.exp(log - log.max())
    return chances / chances.sum()


@pytest.mark.parametrize("number", [0, 3, 40, 200])
def test_mean_and_spread_are_those_of_the_integral(number: int) -> None:
    differences = answers(np.array([0.6, 0.3, 0.1]), number, 10.0)
    posterior = WeightPosterior(3, 10.0, num_draws=4000, seed=1)
    posterior.update(differences)
    chances = on_grid(differences, 10.0)
    mean = chances @ GRID
    spread = np.sqrt(chances @ (GRID - mean) ** 2)
    assert posterior.mean == pytest.approx(mean, abs=0.015)
    assert posterior.draws.std(axis=0) == pytest.approx(spread, abs=0.02)


def test_one_by_one_or_all_at_once() -> None:
    differences = answers(np.array([0.2, 0.3, 0.5]), 30, 10.0)
    at_once, one_by_one = WeightPosterior(3, 10.0), WeightPosterior(3, 10.0)
    at_once.update(differences)
    for difference in differences:
        one_by_one.update(difference[None])
    assert one_by_one.mean == pytest.approx(at_once.mean, abs=0.03)
    assert len(one_by_one.differences) == 30


def test_an_unknown_sharpness_is_learnt() -> None:
    blunt, sharp = WeightPosterior(3, None), WeightPosterior(3, None)
    blunt.update(answers(np.array([0.6, 0.3, 0.1]), 200, 2.0))
    sharp.update(answers(np.array([0.6, 0.3, 0.1]), 200, 40.0))
    assert blunt.sharpness < 6 < 20 < sharp.sharpness
    assert sharp.mean == pytest.approx([0.6, 0.3, 0.1], abs=0.05)


@pytest.mark.parametrize("sharpness", [10.0, None])
def test_the_fit_is_the_best_point_of_a_grid(sharpness: float | None) -> None:
    differences = answers(np.array([0.5, 0.4, 0.1]), 100, 10.0)
    found = fit_weights(differences, sharpness)
    assert found.sum() == pytest.approx(1)

    def likelihood(weights: np.ndarray) -> float:
        tried = [10.0] if sharpness else np.geomspace(0.5, 100, 200)
        return max(-np.logaddexp(0, -s * differences @ weights).sum() for s in tried)

    best = GRID[np.argmax([likelihood(weights) for weights in GRID])]
    assert likelihood(found) >= likelihood(best) - 0.02
    assert found == pytest.approx(best, abs=0.05)


def test_answers_against_every_reward_are_refused() -> None:
    with pytest.raises(PortfolioError, match="Are chosen and rejected swapped"):
        fit_weights([[-0.2, -0.1], [-0.3, -0.4]])


def test_a_contradiction_is_no_error_and_ten_noisy_answers_help(portfolio: Portfolio) -> None:
    pool, _ = question_pool(np.random.default_rng(0).random((40, 4, 3)), 100)
    gaps = {"before": [], "after": []}
    for seed, weights in enumerate(np.random.default_rng(3).dirichlet(np.ones(3), 8)):
        rng, interview = np.random.default_rng(seed), NoisyInterview(portfolio, pool, sharpness=30.0, num_draws=500)

        def missed(talk: NoisyInterview, w: np.ndarray = weights) -> float:
            return 1 - portfolio.values[talk.recommend().member] @ w / np.linalg.norm(w)

        gaps["before"].append(missed(interview))
        for _ in range(10):
            question = interview.next_question()
            assert question is not None
            interview.answer(question, bool(rng.random() < expit(30 * weights @ pool[question])))
        gaps["after"].append(missed(interview))
        assert 0 <= interview.recommend().gap < 1
    assert np.mean(gaps["after"]) < 0.5 * np.mean(gaps["before"])
    twice = NoisyInterview(portfolio, pool, sharpness=30.0, num_draws=500)
    twice.posterior.update(np.array([pool[0], -pool[0]]))
    assert np.isfinite(twice.posterior.mean).all()


def test_a_history_speaks_through_the_reward_models() -> None:
    history = [
        {"prompt": "p", "chosen": "long kind text", "rejected": "no"},
        {"prompt": "q", "chosen": "ok", "rejected": "kind word"},
    ]

    def length(prompts: list[str], texts: list[str]) -> list[float]:
        assert prompts == ["p", "q"]
        return [10.0 * len(text.split()) for text in texts]

    def kind(prompts: list[str], texts: list[str]) -> list[float]:
        return [float("kind" in text) for text in texts]

    raw = history_differences(history, [length, kind])
    assert raw.tolist() == [[20.0, 1.0], [-10.0, -1.0]]
    scale = RewardScale("min_max", np.array([0.0, 0.0]), np.array([40.0, 1.0]))
    assert history_differences(history, [length, kind], scale).tolist() == [[0.5, 1.0], [-0.25, -1.0]]


def test_bad_input(portfolio: Portfolio) -> None:
    with pytest.raises(PortfolioError, match="sharpness must be positive"):
        WeightPosterior(3, 0.0)
    with pytest.raises(PortfolioError, match=r"shape \(num_questions, 3\)"):
        WeightPosterior(3).update([[0.1, 0.2]])
    with pytest.raises(PortfolioError, match="at least one"):
        fit_weights(np.zeros((0, 3)))
    with pytest.raises(PortfolioError, match="level must lie in"):
        NoisyInterview(portfolio, [[0.1, -0.2, 0.3]], level=2.0)
    with pytest.raises(PortfolioError, match="There is no question 1"):
        NoisyInterview(portfolio, [[0.1, -0.2, 0.3]]).answer(1, True)
    with pytest.raises(DataError, match="Past pair 1 has no `rejected`"):
        history_differences([{"prompt": "p", "chosen": "c"}], [])
    with pytest.raises(DataError, match="holds no pairs"):
        history_differences([], [])
