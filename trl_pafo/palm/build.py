"""PALM: search, prune, certify, for any oracle."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.call_log import CallLog
from trl_pafo.palm.core import FloatArray, Oracle, OracleCall, OracleResult, check_options, check_weights, checked_result
from trl_pafo.palm.portfolio import Portfolio
from trl_pafo.palm.solver.certificate import Measure
from trl_pafo.palm.solver.prune import Pruner
from trl_pafo.palm.solver.search import Known, OracleTooFarError, corner_search, grid_search, simplex_corners

CALLS_FILE = "calls.jsonl"

Shares = tuple[float, float, tuple[float, float]]

# The search aims a little lower than asked, so that rounding never decides whether the promise is kept.
AIM = 1 - 1e-6


def build_portfolio(
    oracle: Oracle,
    num_rewards: int,
    epsilon: float,
    delta: float = 0.0,
    *,
    num_members: int | None = None,
    beta: float = 0.0,
    reward_names: Sequence[str] | None = None,
    search: Literal["corners", "grid"] = "corners",
    pruning_share: float = 0.0,
    oracle_factor: float | Literal["estimate"] = 0.0,
    warm_start: Sequence[OracleResult | tuple[ArrayLike, OracleResult]] = (),
    max_calls: int = 1000,
    folder: str | Path | None = None,
    problem: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Portfolio:
    """
    A small set of policies P such that every weight vector w of the simplex has a member with

    ```
    J(w, member) >= (1 - epsilon) V*(w) - delta,    J(w, pi) = w.R(pi) - beta KL(pi || ref),    V*(w) = max J(w, pi)
    ```

    The three parts are the paper's (PALM, arXiv 2604.04144): a structured grid of weights, a lazy search that calls the
    oracle only where it is needed, and pruning by minimum set cover. Its body was out of reach; their details, the search
    on corner weights without a grid, and the certificate are ours (docs/portfolio.md).

    Args:
        oracle (`Callable`):
            Takes weights of shape `(num_rewards,)`, returns an [`OracleResult`] for the best policy that it can find. If it
            has an attribute `problem`, that is the default of `problem`.
        num_rewards (`int`):
            Number of rewards, at least 2.
        epsilon (`float`):
            Relative tolerance, in [1e-6, 1), or 0 for an additive one alone.
        delta (`float`, *optional*, defaults to `0.0`):
            Additive tolerance, in units of the rewards. At least one of the two must be positive.

        > Parameters that control the objective

        beta (`float`, *optional*, defaults to `0.0`):
            Weight of the KL term, in units of the rewards a nat.
        reward_names (`Sequence[str]`, *optional*):
            Names for outputs; by default `reward_0`, ...

        > Parameters that control the size

        num_members (`int`, *optional*):
            Return the choice of this many policies, of all found by a search with these tolerances, that has the least gap;
            the gap may then exceed the tolerance, and is certified as any.
        pruning_share (`float`, *optional*, defaults to `0.0`):
            Share of both tolerances that the search leaves to the pruning, in [0, 1). More means more calls and fewer members.

        > Parameters that control the search

        search (`str`, *optional*, defaults to `"corners"`):
            `"corners"`: on the corner weights of the policies found, which takes the fewest calls. `"grid"`: first on the
            structured grid, as in the paper; needs epsilon > 0, delta > 0 and `beta = 0`, and takes half of the search's
            tolerances for itself. It ends on corner weights, so that nothing leaks between the points.
        oracle_factor (`float` or `"estimate"`, *optional*, defaults to `0.0`):
            The oracle's policy earns at least `1 - oracle_factor` of the best for its weights. The certificate rests on it.
            `"estimate"` takes the greatest share by which an answer was beaten at its own weights by another policy, which
            can be too small.
        warm_start (`Sequence`, *optional*):
            Policies that exist: [`OracleResult`]s, or pairs of the weights that they are the best for and the result. They
            cost no call; with weights they count as an answer of the oracle.
        max_calls (`int`, *optional*, defaults to `1000`):
            Stop after so many calls, those of earlier builds in `folder` among them. That is an error without `num_members`,
            and before each reward was asked alone.

        > Parameters that control what is written

        folder (`str` or `Path`, *optional*):
            Where each answer is appended to `calls.jsonl` as soon as it is there, and `portfolio.json` is written at the end.
            An interrupted build goes on from there; so does one with other tolerances.
        problem (`Mapping`, *optional*):
            What decides the oracle's answers (base model, rewards, seed), as JSON values. A folder with another is refused.
        progress (`bool`, *optional*, defaults to `True`):
            Show calls and the current gap.

    Returns:
        [`Portfolio`], whose certificate keeps the tolerance over the whole simplex (unless `num_members` is given).

    Raises:
        PortfolioError: If an option is out of range, an answer cannot be used, the oracle fails, its answers are too far from
            the best for the tolerance, `max_calls` is reached, or the folder belongs to another problem.
    """
    if num_members is not None and num_members < 1:
        raise PortfolioError(f"num_members must be at least 1, got {num_members}.")
    if not 0 <= pruning_share < 1:
        raise PortfolioError(f"pruning_share must lie in [0, 1), got {pruning_share}.")
    rest = 1 - pruning_share
    shares = _grid_shares(search, epsilon * rest, delta * rest, beta)
    build = Build.open(
        oracle,
        num_rewards,
        epsilon,
        delta,
        beta=beta,
        reward_names=reward_names,
        oracle_factor=oracle_factor,
        warm_start=warm_start,
        folder=folder,
        problem=problem,
    )
    known = build.known
    measure, goal = Measure.of(epsilon * rest, delta * rest)
    with tqdm(desc="portfolio", unit="call", initial=build.num_calls, disable=not progress) as bar:
        try:
            for weights, gap in _questions(known, measure, goal * AIM, shares):
                bar.set_postfix(gap="-" if gap is None else f"{gap:.4f}", asked=f"{goal:.4f}")
                if build.num_calls >= max_calls:
                    if num_members is None or gap is None:
                        state = (
                            f"the {measure.name} is {gap:.4g}, asked: {goal:.4g}" if gap else "some rewards were not asked yet"
                        )
                        raise build.too_many_calls(max_calls, state)
                    break
                build.ask(weights)
                bar.update()
        except OracleTooFarError:
            if num_members is None:
                raise
        measure, goal = Measure.of(epsilon, delta)
        pruner = Pruner(known.values, known.costs, known.upper_bound(), measure)
        choice = pruner.smallest(goal) if num_members is None else pruner.best(num_members)
        portfolio = build.finish(choice.members, choice.exact)
        bar.set_postfix(gap=f"{portfolio.gap:.4f}", members=len(portfolio))
    return portfolio


def _questions(known: Known, measure: Measure, goal: float, shares: Shares | None) -> Iterator[tuple[FloatArray, float | None]]:
    """What to ask next, and how large the gap is as far as it is known."""
    for weights in simplex_corners(known):
        yield weights, None
    if shares is not None:
        yield from grid_search(known, *shares)
    yield from corner_search(known, measure, goal)


def _grid_shares(search: str, epsilon: float, delta: float, beta: float) -> Shares | None:
    """Tolerances on the grid, and those of the grid: (1 - eps_search) / (1 + eps_grid) = 1 - epsilon, half of delta each."""
    if search == "corners":
        return None
    if search != "grid":
        raise PortfolioError(f"search={search!r} is unknown; use 'corners' or 'grid'.")
    if not (epsilon > 0 and delta > 0 and beta == 0):
        raise PortfolioError(
            "search='grid' needs epsilon > 0 and delta > 0 (its geometric levels end at a floor) and beta = 0 (with a KL term the "
            "objective has no scale). search='corners' needs none of these."
        )
    share = epsilon / (2 - epsilon)
    return share, delta / 2, (share, delta / 2)


@dataclass
class Build:
    """A build at work: the oracle, the tolerances, what is known, and the log of the answers."""

    oracle: Oracle
    known: Known
    log: CallLog | None
    epsilon: float
    delta: float
    reward_names: tuple[str, ...]
    folder: str | Path | None

    @classmethod
    def open(
        cls,
        oracle: Oracle,
        num_rewards: int,
        epsilon: float,
        delta: float,
        *,
        beta: float = 0.0,
        reward_names: Sequence[str] | None = None,
        oracle_factor: float | Literal["estimate"] = 0.0,
        warm_start: Sequence[OracleResult | tuple[ArrayLike, OracleResult]] = (),
        folder: str | Path | None = None,
        problem: Mapping[str, Any] | None = None,
    ) -> "Build":
        """Check the options and read what the folder knows already; arguments as of [`build_portfolio`]."""
        names = tuple(reward_names) if reward_names is not None else tuple(f"reward_{place}" for place in range(num_rewards))
        check_options(epsilon, delta, beta, oracle_factor, names, num_rewards)
        calls = [_warm_call(item, num_rewards, place, beta) for place, item in enumerate(warm_start)]
        log = None
        if folder is not None:
            identity = {
                "num_rewards": num_rewards,
                "beta": beta,
                "reward_names": list(names),
                "problem": dict(problem) if problem is not None else getattr(oracle, "problem", None),
            }
            log = CallLog(Path(folder) / CALLS_FILE, identity)
            calls += log.calls
        known = Known(num_rewards, beta, oracle_factor, calls)
        return cls(oracle, known, log, epsilon, delta, names, folder)

    @property
    def num_calls(self) -> int:
        """Calls of the oracle so far, those of interrupted builds among them."""
        return sum(not call.warm for call in self.known.calls)

    def ask(self, weights: FloatArray) -> None:
        """Ask the oracle and keep its answer; whatever it raises becomes a [`PortfolioError`] that says what is kept."""
        where = f"The oracle's answer to w = {np.array2string(weights, precision=4, separator=', ')}"
        try:
            result = self.oracle(weights.copy())
        except Exception as error:
            kept = (
                f" The {self.num_calls} answers before it are kept in {self.log.path}: build again to go on." if self.log else ""
            )
            raise PortfolioError(f"{where} failed: {type(error).__name__}: {error}.{kept}") from error
        call = OracleCall(weights, checked_result(result, self.known.num_rewards, where, self.known.beta))
        if self.log is not None:
            self.log.append(call)
        self.known.calls.append(call)

    def too_many_calls(self, max_calls: int, state: str) -> PortfolioError:
        """The error that ends a search without the gap that was asked."""
        kept = f" The answers are kept in {self.log.path}." if self.log is not None else ""
        return PortfolioError(f"After max_calls={max_calls} calls {state}. Raise max_calls or the tolerance.{kept}")

    def finish(self, members: Sequence[int], smallest: bool) -> Portfolio:
        """The portfolio of these members, saved if there is a folder."""
        portfolio = Portfolio(
            calls=tuple(self.known.calls),
            members=tuple(members),
            epsilon=self.epsilon,
            delta=self.delta,
            beta=self.known.beta,
            reward_names=self.reward_names,
            oracle_factor=self.known.oracle_factor,
            smallest=smallest,
        )
        if self.folder is not None:
            portfolio.save(self.folder)
        return portfolio


def _warm_call(item: OracleResult | tuple[ArrayLike, OracleResult], num_rewards: int, place: int, beta: float) -> OracleCall:
    """A policy that exists, as an answer that cost no call; its weights are NaN where it was trained for none."""
    weights: ArrayLike | None = None
    if not isinstance(item, OracleResult):
        try:
            weights, item = item
        except (TypeError, ValueError) as error:
            raise PortfolioError(f"warm_start[{place}] must be an OracleResult or a pair (weights, OracleResult).") from error
    result = checked_result(item, num_rewards, f"warm_start[{place}]", beta)
    asked = np.full(num_rewards, np.nan) if weights is None else check_weights(weights, num_rewards)
    return OracleCall(asked, result, warm=True)
