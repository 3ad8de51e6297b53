"""Weights of a user who sometimes errs: a posterior from pairwise answers, asked for or found in a preference history.

```
P(the first is liked better | w) = sigmoid(sharpness w.difference)          w ~ Dirichlet(1, ..., 1), even on the simplex
```

the Bradley-Terry model with the weighted rewards as strengths. Since what a member earns is linear in the weights, the member
that is the best on average over the posterior is the one that is the best for the posterior mean. (Not from the paper.)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.data.checks import TEXTS, check_texts
from trl_pafo.errors import DataError, PortfolioError
from trl_pafo.palm.core import FloatArray
from trl_pafo.palm.portfolio import Portfolio
from trl_pafo.palm.users.elicitation import Recommendation, checked_questions, member_gaps

if TYPE_CHECKING:
    from trl_pafo.models.scoring import RewardScorer

_MOVES = 8


class WeightPosterior:
    """
    Draws from the posterior of a user's weights; answers may come one by one or all at once.

    Sequential Monte Carlo (Chopin, 2002): draws are reweighted by each answer, as much of it at a time as leaves half of
    them of use, then drawn anew and moved by random-walk Metropolis steps.

    Args:
        num_rewards (`int`):
            Number of rewards.
        sharpness (`float`, *optional*, defaults to `10.0`):
            How surely the better option is preferred, in 1 / units of the rewards: at 10 a difference of 0.1 is seen in 73 % of
            the answers.
        num_draws (`int`, *optional*, defaults to `2000`):
            Number of draws.
        seed (`int`, *optional*, defaults to `0`):
            Seed.

    Raises:
        PortfolioError: If the sharpness is not positive.
    """

    def __init__(self, num_rewards: int, sharpness: float = 10.0, num_draws: int = 2000, seed: int = 0):
        if not (np.isfinite(sharpness) and sharpness > 0):
            raise PortfolioError(f"sharpness must be positive, got {sharpness}.")
        self.num_rewards, self.sharpness = num_rewards, sharpness
        self.differences = np.zeros((0, num_rewards))
        self._rng = np.random.default_rng(seed)
        # Logarithms of independent exponential variables, whose shares are even on the simplex: no walls to walk into.
        self._state = np.log(self._rng.exponential(size=(num_draws, num_rewards)))

    @property
    def draws(self) -> FloatArray:
        """Equally likely weights, of shape `(num_draws, num_rewards)`."""
        return _weights(self._state)

    @property
    def mean(self) -> FloatArray:
        """Posterior mean of the weights, of shape `(num_rewards,)`."""
        return self.draws.mean(axis=0)

    def recommend(self, portfolio: Portfolio, level: float = 0.9) -> Recommendation:
        """The member that is the best on average over the posterior, and the `level` quantile of its gap."""
        member = portfolio.choose(self.mean)
        gaps = member_gaps(portfolio, self.draws, portfolio.upper_bound)[:, member]
        return Recommendation(member, float(np.quantile(gaps, level)))

    def update(self, differences: ArrayLike) -> None:
        """Learn from answers: rewards of the option that was liked minus rewards of the other, of shape `(num_answers,
        num_rewards)`.

        Another shape, or NaN, raises [`PortfolioError`].
        """
        new = checked_questions(differences, self.num_rewards)
        old, done = self.differences, 0.0
        while done < 1 and len(new):
            surprise = self._log_likelihood(self._state, new)
            step = _largest_step(surprise, 1 - done)
            done = 1.0 if step >= 1 - done else done + step
            share = _normalized(step * surprise)
            self._state = self._state[self._rng.choice(len(share), size=len(share), p=share)]
            self._move(old, new, done)
        self.differences = np.vstack([old, new])

    def _move(self, old: FloatArray, new: FloatArray, power: float) -> None:
        def log_density(state: FloatArray) -> FloatArray:
            prior = (state - np.exp(state)).sum(axis=1)
            return prior + self._log_likelihood(state, old) + power * self._log_likelihood(state, new)

        root = np.linalg.cholesky(np.cov(self._state.T) + 1e-9 * np.eye(self.num_rewards)) * 2.38 / np.sqrt(self.num_rewards)
        now = log_density(self._state)
        for _ in range(_MOVES):
            # A random length of step suits a posterior that is narrow in one place and wide in another.
            scale = self._rng.choice([0.3, 1.0], size=(len(now), 1))
            proposal = self._state + scale * self._rng.normal(size=self._state.shape) @ root.T
            then = log_density(proposal)
            accepted = np.log(self._rng.random(len(now))) < then - now
            self._state[accepted], now[accepted] = proposal[accepted], then[accepted]

    def _log_likelihood(self, state: FloatArray, differences: FloatArray) -> FloatArray:
        return -np.logaddexp(0.0, -self.sharpness * (_weights(state) @ differences.T)).sum(axis=1)


def _weights(state: FloatArray) -> FloatArray:
    gammas = np.exp(state)
    return gammas / gammas.sum(axis=1, keepdims=True)


def history_differences(
    history: Sequence[Mapping[str, Any]],
    scorers: "Sequence[RewardScorer]",
    scale: Callable[[FloatArray], FloatArray] | None = None,
) -> FloatArray:
    """A user's past pairs as answers: what the reward models say of `chosen` minus what they say of `rejected`.

    Args:
        history (`Sequence[Mapping]`):
            Past pairs with `prompt`, `chosen` and `rejected`, texts or messages.
        scorers (`Sequence[RewardScorer]`):
            A [`~trl_pafo.models.RewardScorer`] for each reward, in the order of the weights.
        scale (`Callable`, *optional*):
            Raw rewards of shape `(..., num_rewards)` into the portfolio's units, the [`~trl_pafo.palm.RewardScale`] that it was
            built with.

    Returns:
        Array of shape `(num_pairs, num_rewards)`, for [`WeightPosterior`].

    Raises:
        DataError: If there is no pair, or one lacks a text.
    """
    if not len(history):
        raise DataError("The history holds no pairs; with nothing known of a user, take the member for even weights.")
    for place, pair in enumerate(history):
        check_texts({name: pair.get(name) for name in TEXTS}, f"Past pair {place}")
    pairs = [{name: pair[name] for name in TEXTS} for pair in history]
    scored = [scorer.score(pairs) for scorer in scorers]
    sides = [np.array([[row[side] for row in rows] for rows in scored]).T for side in ("chosen", "rejected")]
    chosen, rejected = sides if scale is None else map(scale, sides)
    return chosen - rejected


def _largest_step(surprise: FloatArray, rest: float) -> float:
    """The greatest power of the likelihood, up to `rest`, that leaves half of the draws of use."""
    half = len(surprise) / 2

    def useful(power: float) -> float:
        return 1 / float((_normalized(power * surprise) ** 2).sum())

    if useful(rest) >= half:
        return rest
    low, high = 0.0, rest
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if useful(middle) >= half else (low, middle)
    return max(low, 1e-6)


def _normalized(log_weights: FloatArray) -> FloatArray:
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()
