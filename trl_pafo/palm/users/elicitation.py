"""Which member for a user whose weights are not known: from answers "I like this one better", one question at a time.

An answer says on which side of a plane through the simplex the weights lie, so that a few answers leave a small polytope of
weights. The gap of one member over a polytope is greatest at one of its corners (the optimum is convex in the weights,
what one member earns is linear), so the worst case that is left is exact. (All of this is ours, after minimax regret in
preference elicitation: Boutilier et al., 2006.) Answers with mistakes: `WeightPosterior`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.core import FloatArray, IntArray
from trl_pafo.palm.portfolio import Portfolio
from trl_pafo.palm.solver.bounds import Reference
from trl_pafo.palm.solver.regions import WeightRegion

# An answer that moves no weight by more than this says nothing.
_SAME = 1e-9
# Questions whose two answers are worked out in full before one of them is asked.
_SHORTLIST = 48


class Recommendation(NamedTuple):
    """The member to serve and the most that it can miss: its gap at the worst weights that are still possible."""

    member: int
    gap: float


class Interview:
    """
    Finds a member for a user by pairwise questions, taken at its word.

    ```python
    interview = Interview(portfolio, questions)
    while (question := interview.next_question()) is not None and interview.recommend().gap > 1.2 * portfolio.gap:
        interview.answer(question, likes_first(question))
    member = interview.recommend().member
    ```

    Args:
        portfolio ([`Portfolio`]):
            The members.
        questions (array of shape `(num_questions, num_rewards)`):
            Rewards of the first option minus rewards of the second, in the portfolio's units: two responses to one prompt,
            see [`question_pool`], or two members. A user who likes the first has `w.question >= 0`: it is the rewards that a
            user feels, not the KL term.
        tolerance (`float`, *optional*, defaults to `0.0`):
            A user may mistake options whose worth differs by no more than this: an answer then says `w.question >= -tolerance`.
            In units of the rewards.
        reference ([`Reference`], *optional*):
            What members are compared with; by default the portfolio's upper bound of the optimum. `Pool(portfolio.values,
            beta * kl)` gives the regret to the best member.

    Raises:
        PortfolioError: If questions have another number of rewards, hold NaN, or the tolerance is negative.
    """

    def __init__(self, portfolio: Portfolio, questions: ArrayLike, *, tolerance: float = 0.0, reference: Reference | None = None):
        self.portfolio = portfolio
        self.questions = checked_questions(questions, portfolio.values.shape[1])
        if not (np.isfinite(tolerance) and tolerance >= 0):
            raise PortfolioError(f"tolerance must not be negative, got {tolerance}; it is in units of the rewards.")
        self.tolerance = tolerance
        self.reference = portfolio.upper_bound if reference is None else reference
        self.consistent = WeightRegion.simplex(portfolio.values.shape[1])
        self.answers: list[tuple[FloatArray, bool]] = []
        self._open = np.ones(len(self.questions), dtype=bool)

    def answer(self, question: int, first: bool) -> None:
        """The user likes the first option of question number `question` better, or the second.

        Raises:
            PortfolioError: If there is no such question, or no weights fit this answer and those before.
        """
        if not 0 <= question < len(self.questions):
            raise PortfolioError(f"There is no question {question}; they are 0 to {len(self.questions) - 1}.")
        self.tell(self.questions[question], first)
        self._open[question] = False

    def tell(self, difference: FloatArray, first: bool = True) -> None:
        """An answer to a question that is not in the pool: see [`~Interview.answer`]."""
        left = self.consistent.cut(self._normal(difference, first))
        if left is None:
            raise PortfolioError(
                f"No weights fit answer {len(self.answers) + 1} and those before: it contradicts them. Leave it out, allow a "
                f"tolerance above {self.tolerance:g}, or use WeightPosterior, which expects mistakes (on the command line --sharpness)."
            )
        self.consistent = left
        self.answers.append((difference, first))

    def recommend(self) -> Recommendation:
        """The member whose gap at the worst of the possible weights is the least; the first of equals."""
        gaps = self._worst_gaps([self.consistent])[0]
        return Recommendation(int(gaps.argmin()), float(gaps.min()))

    def next_question(self) -> int | None:
        """The question whose two answers leave the least to lose; `None` if no open one can narrow the weights down.

        Of the questions whose plane passes nearest to the middle of what is possible, the one with the least sum of what
        each answer leaves: the worst gap of the best member then.
        """
        heights = self.consistent.points @ self.questions.T
        low, high = heights.min(axis=0), heights.max(axis=0)
        # An answer that could not be given, or that says no more than is known, is worth no question.
        open_ones = np.flatnonzero(self._open & (low + self.tolerance < -_SAME) & (high - self.tolerance > _SAME))
        if not len(open_ones):
            return None
        unevenness = np.abs(self.consistent.center @ self.questions[open_ones].T) / (high - low)[open_ones]
        shortlist = open_ones[np.argsort(unevenness, kind="stable")[:_SHORTLIST]]
        halves = [self.consistent.cut(self._normal(self.questions[place], side)) for place in shortlist for side in (True, False)]
        kept = [half if half is not None else self.consistent for half in halves]
        left = self._worst_gaps(kept).min(axis=1).reshape(-1, 2)
        return int(shortlist[left.sum(axis=1).argmin()])

    def _normal(self, difference: FloatArray, first: bool) -> FloatArray:
        return (difference if first else -difference) + self.tolerance  # the weights add up to 1

    def _worst_gaps(self, regions: list[WeightRegion]) -> FloatArray:
        """Gap of each member at the worst weights of each region, of shape `(num_regions, num_members)`."""
        points = np.vstack([region.points for region in regions])
        starts = np.cumsum([0, *(len(region.points) for region in regions[:-1])])
        return np.maximum.reduceat(member_gaps(self.portfolio, points, self.reference), starts, axis=0)


def member_gaps(portfolio: Portfolio, weights: FloatArray, reference: Reference) -> FloatArray:
    """Gap of every member at every row of `weights`, of shape `(num_weights, num_members)`, in the portfolio's measure."""
    lower = weights @ portfolio.values.T - portfolio.beta * portfolio.kl
    return portfolio.measure.gaps(reference.at(weights)[:, None], lower)


def question_pool(rewards: ArrayLike, num_questions: int = 300, seed: int = 0) -> tuple[FloatArray, IntArray]:
    """Questions "which of these two responses?" from candidate responses.

    Args:
        rewards (array of shape `(num_prompts, num_candidates, num_rewards)`):
            Rewards of the responses in the portfolio's units; NaN where a prompt has fewer.
        num_questions (`int`, *optional*, defaults to `300`):
            How many pairs to draw, if there are as many.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the drawing.

    Returns:
        Differences of shape `(num_questions, num_rewards)` for [`Interview`], and `(prompt, first, second)` of each.

    Raises:
        PortfolioError: If there is no pair in which one response is better in one reward and worse in another: every other
            answer is known beforehand.
    """
    table = np.asarray(rewards, dtype=np.float64)
    if table.ndim != 3 or num_questions < 1:
        raise PortfolioError(
            f"`rewards` must have shape (num_prompts, num_candidates, num_rewards), got {table.shape}, and num_questions be "
            f"at least 1, got {num_questions}."
        )
    first, second = np.triu_indices(table.shape[1], k=1)
    differences = table[:, first] - table[:, second]
    prompts, pairs = np.nonzero((differences.min(axis=-1) < 0) & (differences.max(axis=-1) > 0))
    if not len(prompts):
        raise PortfolioError("No two responses to one prompt trade one reward for another, so no question tells users apart.")
    drawn = np.random.default_rng(seed).permutation(len(prompts))[:num_questions]
    prompts, pairs = prompts[drawn], pairs[drawn]
    return differences[prompts, pairs], np.column_stack([prompts, first[pairs], second[pairs]])


def checked_questions(questions: ArrayLike, num_rewards: int) -> FloatArray:
    """Questions as a `float64` array of shape `(num_questions, num_rewards)`; [`PortfolioError`] otherwise."""
    table = np.asarray(questions, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != num_rewards:
        raise PortfolioError(
            f"Questions must have shape (num_questions, {num_rewards}), a difference of rewards each; got {table.shape}."
        )
    if not np.isfinite(table).all():
        raise PortfolioError("Questions hold NaN or infinity: find out which reward gives it.")
    return table
