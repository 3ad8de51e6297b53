"""The posterior against integration on a grid."""

import numpy as np
import pytest
from helpers.fronts import Sphere
from scipy.special import expit

from trl_pafo.errors import DataError, PortfolioError
from trl_pafo.palm import RewardScale, WeightPosterior, build_portfolio, history_differences
from trl_pafo.palm.users.posterior import _largest_step

STEPS = 60
GRID = np.array([(i, j, STEPS - i - j) for i in range(STEPS + 1) for j in range(STEPS + 1 - i)]) / STEPS


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


@pytest.mark.parametrize("number", [0, 3, 100])
def test_mean_and_spread_are_those_of_the_integral(number: int) -> None:
    differences = answers(np.array([0.6, 0.3, 0.1]), number, 10.0)
    posterior = WeightPosterior(3, 10.0, num_draws=4000, seed=1)
    posterior.update(differences)
    chances = on_grid(differences, 10.0)
    mean = chances @ GRID
    spread = np.sqrt(chances @ (GRID - mean) ** 2)
    assert posterior.mean == pytest.approx(mean, abs=0.015)
    assert posterior.draws.std(axis=0) == pytest.approx(spread, abs=0.02)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_moves_alone_lead_from_any_draws_to_the_posterior(power: float) -> None:
    old, new = np.split(answers(np.array([0.6, 0.3, 0.1]), 6, 10.0), 2)
    posterior = WeightPosterior(3, 10.0, num_draws=4000, seed=1)
    posterior._state = 0.3 * posterior._state + np.array([0.0, 0.0, 1.0])
    for _ in range(8):
        posterior._move(old, new, power)
    log = sum(of * -np.logaddexp(0, -10.0 * GRID @ part.T).sum(axis=1) for of, part in ((1.0, old), (power, new)))
    chances = np.exp(log) / np.exp(log).sum()
    mean = chances @ GRID
    assert posterior.mean == pytest.approx(mean, abs=0.015)
    assert posterior.draws.std(axis=0) == pytest.approx(np.sqrt(chances @ (GRID - mean) ** 2), abs=0.02)


def test_one_by_one_or_all_at_once() -> None:
    differences = answers(np.array([0.2, 0.3, 0.5]), 30, 10.0)
    at_once, one_by_one = WeightPosterior(3, 10.0), WeightPosterior(3, 10.0)
    at_once.update(differences)
    for difference in differences:
        one_by_one.update(difference[None])
    assert one_by_one.mean == pytest.approx(at_once.mean, abs=0.03)
    assert len(one_by_one.differences) == 30


def test_a_recommendation_is_of_the_mean_with_a_quantile_of_its_gap() -> None:
    portfolio = build_portfolio(Sphere(), 3, 0.1, progress=False)
    posterior = WeightPosterior(3, num_draws=500)
    posterior.update(answers(np.array([0.6, 0.3, 0.1]), 5, 10.0))
    earned = posterior.draws @ portfolio.values.T
    member = int(earned.mean(axis=0).argmax())
    gaps = 1 - earned[:, member] / portfolio.upper_bound.at(posterior.draws)
    for level, found in ((0.9, posterior.recommend(portfolio)), (0.5, posterior.recommend(portfolio, 0.5))):
        assert found.member == member
        assert found.gap == pytest.approx(np.quantile(gaps, level), abs=1e-9)
    posterior.update(-posterior.differences)  # a contradiction is no error
    assert np.isfinite(posterior.mean).all()


def test_what_is_not_given_is_a_sharpness_of_10_and_2000_draws_of_seed_0() -> None:
    differences = answers(np.array([0.6, 0.3, 0.1]), 3, 10.0)
    found = [WeightPosterior(3), WeightPosterior(3, 10.0, 2000, 0), WeightPosterior(3, 10.0, 2000, 1)]
    for posterior in found:
        posterior.update(differences)
    assert found[0].draws.shape == (2000, 3)
    assert np.array_equal(found[0].draws, found[1].draws)
    assert not np.array_equal(found[0].draws, found[2].draws)


@pytest.mark.parametrize("scale", [0.1, 3.0, 500.0])
def test_so_much_of_an_answer_is_taken_as_leaves_half_of_the_draws_of_use(scale: float) -> None:
    surprise = scale * np.random.default_rng(0).normal(size=400)

    def useful(power: float) -> float:
        weights = np.exp(power * (surprise - surprise.max()))
        return weights.sum() ** 2 / (weights**2).sum()

    step = _largest_step(surprise, 0.7)
    assert step == 0.7 if useful(0.7) >= 200 else useful(step) == pytest.approx(200, abs=0.01)
    assert (step == 0.7) == (scale == 0.1)


def test_the_steps_of_an_answer_add_up_to_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[float] = []

    def step(surprise: np.ndarray, rest: float) -> float:
        assert rest == pytest.approx(1 - sum(steps))
        steps.append(_largest_step(surprise, rest))
        return steps[-1]

    monkeypatch.setattr("trl_pafo.palm.users.posterior._largest_step", step)
    WeightPosterior(3).update(answers(np.array([0.6, 0.3, 0.1]), 40, 10.0))
    assert len(steps) > 1
    assert sum(steps) == pytest.approx(1)


def test_an_answer_that_leaves_no_draw_of_use_is_taken_a_little_at_a_time() -> None:
    assert _largest_step(np.array([0.0, -1e12, -1e12, -1e12]), 1.0) == 1e-6


def test_a_history_speaks_through_the_reward_models() -> None:
    history = [
        {"prompt": "p", "chosen": "long kind text", "rejected": "no", "user": "u"},
        {"prompt": "q", "chosen": "ok", "rejected": "kind word", "user": "u"},
    ]

    class Scorer:
        def __init__(self, reward):
            self.reward = reward

        def score(self, rows):
            assert [row["prompt"] for row in rows] == ["p", "q"]
            return [{side: self.reward(row[side]) for side in ("chosen", "rejected")} for row in rows]

    scorers = [Scorer(lambda text: 10.0 * len(text.split())), Scorer(lambda text: float("kind" in text))]
    assert history_differences(history, scorers).tolist() == [[20.0, 1.0], [-10.0, -1.0]]
    scale = RewardScale("min_max", np.array([0.0, 0.0]), np.array([40.0, 1.0]))
    assert history_differences(history, scorers, scale).tolist() == [[0.5, 1.0], [-0.25, -1.0]]


def test_bad_input() -> None:
    assert WeightPosterior(3, 0.5).sharpness == 0.5
    for sharpness in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(PortfolioError, match="sharpness must be positive"):
            WeightPosterior(3, sharpness)
    with pytest.raises(PortfolioError, match=r"shape \(num_questions, 3\)"):
        WeightPosterior(3).update([[0.1, 0.2]])
    with pytest.raises(DataError, match="Past pair 0: `rejected` must be a text"):
        history_differences([{"prompt": "p", "chosen": "c"}], [])
    with pytest.raises(DataError, match="holds no pairs"):
        history_differences([], [])
