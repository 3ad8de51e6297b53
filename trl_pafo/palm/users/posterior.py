"""Weights of a user who sometimes errs: a posterior from pairwise answers, asked for or found in a preference history.

```
P(the first is liked better | w) = sigmoid(sharpness w.difference)          w ~ Dirichlet(1, ..., 1), even on the simplex
```

the Bradley-Terry model with the weighted rewards as strengths. Since what a member earns is linear in the weights, the member
that is the best on average over the posterior is the one that is the best for the posterior mean. (Not from the paper.)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import entr, expit

from trl_pafo.errors import DataError, PortfolioError
from trl_pafo.palm.core import FloatArray
from trl_pafo.palm.portfolio import Portfolio
from trl_pafo.palm.solver.bounds import Reference
from trl_pafo.palm.users.elicitation import Recommendation, checked_questions, member_gaps

# Where the sharpness is not known: log sharpness ~ N(log 10, 1), so that a difference of 0.1 is seen by 73 % of users with
# the middle one. (Not from the paper.)
_LOG_SHARPNESS = (np.log(10.0), 1.0)
_MOVES = 8
MAX_SHARPNESS = 100.0


class WeightPosterior:
    """
    Draws from the posterior of a user's weights; answers may come one by one or all at once.

    Sequential Monte Carlo (Chopin, 2002): draws are reweighted by each answer, as much of it at a time as leaves half of
    them of use, then drawn anew and moved by random-walk Metropolis steps.

    Args:
        num_rewards (`int`):
            Number of rewards.
        sharpness (`float`, *optional*, defaults to `10.0`):
            How surely the better option is preferred, in 1 / units of the rewards; `None` to learn it from the answers.
        num_draws (`int`, *optional*, defaults to `2000`):
            Number of draws.
        seed (`int`, *optional*, defaults to `0`):
            Seed.

    Raises:
        PortfolioError: If the sharpness is not positive.
    """

    def __init__(self, num_rewards: int, sharpness: float | None = 10.0, num_draws: int = 2000, seed: int = 0):
        if sharpness is not None and not (np.isfinite(sharpness) and sharpness > 0):
            raise PortfolioError(f"sharpness must be positive (or None to learn it), got {sharpness}.")
        self.num_rewards, self.fixed = num_rewards, sharpness
        self.differences = np.zeros((0, num_rewards))
        self._rng = np.random.default_rng(seed)
        # Logarithms of independent exponential variables, whose shares are even on the simplex: no walls to walk into.
        self._state = np.log(self._rng.exponential(size=(num_draws, num_rewards)))
        if sharpness is None:
            self._state = np.column_stack([self._state, self._rng.normal(*_LOG_SHARPNESS, num_draws)])

    @property
    def draws(self) -> FloatArray:
        """Equally likely weights, of shape `(num_draws, num_rewards)`."""
        return self._weights(self._state)

    @property
    def sharpness(self) -> float:
        """The sharpness: as given, or the posterior median."""
        return self.fixed if self.fixed is not None else float(np.exp(np.median(self._state[:, -1])))

    @property
    def mean(self) -> FloatArray:
        """Posterior mean of the weights, of shape `(num_rewards,)`."""
        return self.draws.mean(axis=0)

    def update(self, differences: ArrayLike) -> None:
        """Learn from answers.

        Args:
            differences (array of shape `(num_answers, num_rewards)`):
                Rewards of the option that was liked minus rewards of the other.

        Raises:
            PortfolioError: If the shape is another, or a number is NaN.
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
            density = self._log_likelihood(state, old) + power * self._log_likelihood(state, new)
            gammas = state[:, : self.num_rewards]
            density += (gammas - np.exp(gammas)).sum(axis=1)
            if self.fixed is None:
                center, spread = _LOG_SHARPNESS
                density -= ((state[:, -1] - center) / spread) ** 2 / 2
            return density

        size = self._state.shape[1]
        root = np.linalg.cholesky(np.cov(self._state.T) + 1e-9 * np.eye(size)) * 2.38 / np.sqrt(size)
        now = log_density(self._state)
        for _ in range(_MOVES):
            # A random length of step suits a posterior that is narrow in one place and wide in another.
            scale = self._rng.choice([0.3, 1.0], size=(len(now), 1))
            proposal = self._state + scale * self._rng.normal(size=self._state.shape) @ root.T
            then = log_density(proposal)
            accepted = np.log(self._rng.random(len(now))) < then - now
            self._state[accepted], now[accepted] = proposal[accepted], then[accepted]

    def _log_likelihood(self, state: FloatArray, differences: FloatArray) -> FloatArray:
        sharpness = self.fixed if self.fixed is not None else np.exp(state[:, -1:])
        return -np.logaddexp(0.0, -sharpness * (self._weights(state) @ differences.T)).sum(axis=1)

    def _weights(self, state: FloatArray) -> FloatArray:
        gammas = np.exp(state[:, : self.num_rewards])
        return gammas / gammas.sum(axis=1, keepdims=True)


class NoisyInterview:
    """
    As [`Interview`], for answers that are sometimes wrong: nothing is ever contradicted, only made less likely.

    Args:
        portfolio ([`Portfolio`]):
            The members.
        questions (array of shape `(num_questions, num_rewards)`):
            Rewards of the first option minus rewards of the second.
        sharpness (`float`, *optional*, defaults to `10.0`):
            See [`WeightPosterior`].
        reference ([`Reference`], *optional*):
            What members are held against; by default the portfolio's upper bound of the optimum.
        level (`float`, *optional*, defaults to `0.9`):
            The gap of a recommendation is this quantile over the posterior.
        num_draws, seed (`int`, *optional*, defaults to `2000` and `0`):
            See [`WeightPosterior`].

    Raises:
        PortfolioError: If an argument cannot be used.
    """

    def __init__(
        self,
        portfolio: Portfolio,
        questions: ArrayLike,
        *,
        sharpness: float | None = 10.0,
        reference: Reference | None = None,
        level: float = 0.9,
        num_draws: int = 2000,
        seed: int = 0,
    ):
        if not 0 < level <= 1:
            raise PortfolioError(f"level must lie in (0, 1], got {level}.")
        self.portfolio, self.level = portfolio, level
        self.questions = checked_questions(questions, portfolio.values.shape[1])
        self.reference = portfolio.upper_bound if reference is None else reference
        self.posterior = WeightPosterior(portfolio.values.shape[1], sharpness, num_draws, seed)
        self._open = np.ones(len(self.questions), dtype=bool)

    def answer(self, question: int, first: bool) -> None:
        """The user says that the first option of question number `question` is better, or the second.

        Raises:
            PortfolioError: If there is no such question.
        """
        if not 0 <= question < len(self.questions):
            raise PortfolioError(f"There is no question {question}; they are 0 to {len(self.questions) - 1}.")
        self.posterior.update((self.questions[question] if first else -self.questions[question])[None])
        self._open[question] = False

    def recommend(self) -> Recommendation:
        """The member that is the best on average over the posterior, and the quantile of its gap."""
        member = self.portfolio.choose(self.posterior.mean)
        gaps = member_gaps(self.portfolio, self.posterior.draws, self.reference)[:, member]
        return Recommendation(member, float(np.quantile(gaps, self.level)))

    def next_question(self) -> int | None:
        """The open question whose answer says most about which member is the best (mutual information); `None` at the end.

        Where one member is the best for all draws, the one that says most about the weights.
        """
        open_ones = np.flatnonzero(self._open)
        if not len(open_ones):
            return None
        draws = self.posterior.draws
        likes = expit(self.posterior.sharpness * draws @ self.questions[open_ones].T)
        best = self.portfolio.choose_many(draws)
        before = _binary_entropy(likes.mean(axis=0))
        if (best == best[0]).all():
            return int(open_ones[(before - _binary_entropy(likes).mean(axis=0)).argmax()])
        after = np.zeros(len(open_ones))
        for member in np.unique(best):
            mine = best == member
            after += mine.mean() * _binary_entropy(likes[mine].mean(axis=0))
        return int(open_ones[(before - after).argmax()])


def fit_weights(differences: ArrayLike, sharpness: float | None = None) -> FloatArray:
    """The weights of greatest likelihood under Bradley-Terry, on the simplex.

    Args:
        differences (array of shape `(num_answers, num_rewards)`):
            Rewards of what was liked minus rewards of the other.
        sharpness (`float`, *optional*):
            If not given, that of greatest likelihood too, up to 100.

    Returns:
        Weights of shape `(num_rewards,)`. Where several fit alike, as after few answers, which of them is open:
        [`WeightPosterior`] then says more.

    Raises:
        PortfolioError: If there are no answers, or, with an unknown sharpness, no reward explains them better than chance.
    """
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or not len(table):
        raise PortfolioError(f"Answers must have shape (num_answers, num_rewards), at least one; got {table.shape}.")
    table = checked_questions(table, table.shape[1])
    num_rewards = table.shape[1]

    def loss(theta: FloatArray) -> tuple[float, FloatArray]:
        margins = table @ theta
        return float(np.logaddexp(0.0, -margins).mean()), -(expit(-margins) @ table) / len(table)

    total = MAX_SHARPNESS if sharpness is None else sharpness
    sums = {
        "type": "ineq" if sharpness is None else "eq",
        "fun": lambda t: total - t.sum(),
        "jac": lambda t: -np.ones(num_rewards),
    }
    start = np.full(num_rewards, min(total, 1.0 if sharpness is None else total) / num_rewards)
    answer = minimize(
        loss, start, jac=True, method="SLSQP", bounds=[(0, total)] * num_rewards, constraints=[sums], options={"maxiter": 500}
    )
    theta = np.maximum(answer.x, 0.0)
    if theta.sum() < 1e-6:
        raise PortfolioError(
            "No weights explain the answers better than chance: they go against every reward. Are chosen and rejected swapped?"
        )
    return theta / theta.sum()


def history_differences(
    history: Sequence[Mapping[str, Any]],
    rewards: Sequence[Callable[[Sequence[Any], Sequence[Any]], ArrayLike]],
    scale: Callable[[FloatArray], FloatArray] | None = None,
) -> FloatArray:
    """A user's past pairs as answers: what the reward models say of `chosen` minus what they say of `rejected`.

    Args:
        history (`Sequence[Mapping]`):
            Past pairs with `prompt`, `chosen` and `rejected`, texts or messages.
        rewards (`Sequence[Callable]`):
            One a reward, in the order of the weights: prompts and responses to rewards of shape `(num_responses,)`, such as
            [`~trl_pafo.palm.oracles.texts.RewardModel`].
        scale (`Callable`, *optional*):
            Raw rewards of shape `(..., num_rewards)` into the portfolio's units, the
            [`~trl_pafo.palm.oracles.candidates.RewardScale`] that it was built with.

    Returns:
        Array of shape `(num_pairs, num_rewards)`, for [`WeightPosterior`] and [`fit_weights`].

    Raises:
        DataError: If there is no pair, or one lacks a text.
    """
    if not len(history):
        raise DataError("The history holds no pairs; with nothing known of a user, take the member for even weights.")
    for place, pair in enumerate(history, 1):
        missing = [name for name in ("prompt", "chosen", "rejected") if not pair.get(name)]
        if missing:
            raise DataError(f"Past pair {place} has no `{missing[0]}`; reward models need prompt, chosen and rejected.")
    prompts = [pair["prompt"] for pair in history]
    sides = []
    for side in ("chosen", "rejected"):
        texts = [pair[side] for pair in history]
        raw = np.column_stack([np.asarray(reward(prompts, texts), dtype=np.float64) for reward in rewards])
        sides.append(raw if scale is None else scale(raw))
    return sides[0] - sides[1]


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


def _binary_entropy(chance: FloatArray) -> FloatArray:
    return entr(chance) + entr(1 - chance)
