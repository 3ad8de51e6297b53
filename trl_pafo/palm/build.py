"""PALM: search, prune, certify, for any oracle."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.call_log import CallLog
from trl_pafo.palm.core import FloatArray, Oracle, OracleCall, OracleResult, check_weights, checked_result
from trl_pafo.palm.portfolio import Portfolio
from trl_pafo.palm.solver.certificate import Measure, certify
from trl_pafo.palm.solver.prune import Pruner
from trl_pafo.palm.solver.search import Known, OracleTooFarError, corner_search, grid_search, observed_factor, simplex_corners
from trl_pafo.palm.solver.simplex import size_bound

CALLS_FILE = "calls.jsonl"

Shares = tuple[float, float, tuple[float, float]]

# The search aims a little lower than asked, so that rounding never decides whether the promise is kept.
_AIM = 1 - 1e-6


def build_portfolio(
    oracle: Oracle,
    num_rewards: int,
    epsilon: float,
    delta: float = 0.0,
    *,
    num_members: int | None = None,
    beta: float = 0.0,
    reward_range: tuple[float, float] = (0.0, 1.0),
    reward_names: Sequence[str] | None = None,
    search: Literal["corners", "grid"] = "corners",
    split: tuple[float, float, float] = (0.5, 0.5, 0.0),
    exact_cover: bool | None = None,
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
        reward_range (`tuple[float, float]`, *optional*, defaults to `(0.0, 1.0)`):
            Least and greatest value of a reward. With epsilon > 0 none may be negative.
        reward_names (`Sequence[str]`, *optional*):
            Names for outputs; by default `reward_0`, ...

        > Parameters that control the size

        num_members (`int`, *optional*):
            Return the choice of this many policies, of all found by a search with these tolerances, that has the least gap;
            the gap may then exceed the tolerance, and is certified as any.
        exact_cover (`bool`, *optional*):
            `True` for the integer programme whatever its size, `False` for greedy with reverse delete; by default the
            integer programme while it is small.
        split (`tuple[float, float, float]`, *optional*, defaults to `(0.5, 0.5, 0.0)`):
            Shares of both tolerances for the grid, the search and the pruning. More for the pruning means more calls and
            fewer members; it may also use what the search left. On corner weights the search has the grid's share.

        > Parameters that control the search

        search (`str`, *optional*, defaults to `"corners"`):
            `"corners"`: on the corner weights of the policies found, which takes the fewest calls. `"grid"`: first on the
            structured grid, as in the paper; needs epsilon > 0, delta > 0 and `beta = 0`, and has half of the tolerances
            for itself (`split`). It ends on corner weights, so that nothing leaks between the points.
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
            A build that was killed goes on from there; so does one with other tolerances.
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
    names = checked_options(num_rewards, epsilon, delta, beta, reward_range, reward_names, split, oracle_factor, num_members)
    shares = _grid_shares(search, epsilon, delta, beta, split)
    log, known = open_search(oracle, num_rewards, beta, reward_range, names, oracle_factor, warm_start, folder, problem)
    measure, goal = Measure.of(epsilon * (1 - split[2]), delta * (1 - split[2]))
    num_calls = sum(not call.warm for call in known.calls)
    with tqdm(desc="portfolio", unit="call", initial=num_calls, disable=not progress) as bar:
        try:
            for weights, gap in _questions(known, measure, goal * _AIM, shares):
                bar.set_postfix(gap="-" if gap is None else f"{gap:.4f}", asked=f"{goal:.4f}")
                if num_calls >= max_calls:
                    if num_members is None or gap is None:
                        raise PortfolioError(_too_many(num_calls, gap, goal, measure, log))
                    break
                call = OracleCall(weights, ask_oracle(oracle, weights, num_rewards, reward_range, num_calls, log))
                if log is not None:
                    log.append(call)
                known.calls.append(call)
                num_calls += 1
                bar.update()
        except OracleTooFarError:
            if num_members is None:
                raise
        portfolio = _finish(known, epsilon, delta, names, num_calls, num_members, exact_cover)
        bar.set_postfix(gap=f"{portfolio.gap:.4f}", members=len(portfolio))
    if folder is not None:
        portfolio.save(folder)
    return portfolio


def _questions(known: Known, measure: Measure, goal: float, shares: Shares | None) -> Iterator[tuple[FloatArray, float | None]]:
    """What to ask next, and how large the gap is as far as it is known."""
    for weights in simplex_corners(known):
        yield weights, None
    if shares is not None:
        yield from grid_search(known, *shares)
    yield from corner_search(known, measure, goal)


def _finish(
    known: Known,
    epsilon: float,
    delta: float,
    names: tuple[str, ...],
    num_calls: int,
    num_members: int | None,
    exact_cover: bool | None,
) -> Portfolio:
    measure, goal = Measure.of(epsilon, delta)
    reference = known.upper_bound()
    pruner = Pruner(known.values, known.costs, reference, measure, exact_cover)
    choice = pruner.smallest(goal) if num_members is None else pruner.best(num_members)
    members = choice.members
    kl = np.array([call.result.kl for call in known.calls])[members]
    _, own, best = known.answers()
    return Portfolio(
        calls=tuple(known.calls),
        members=tuple(members),
        epsilon=epsilon,
        delta=delta,
        beta=known.beta,
        reward_range=known.reward_range,
        reward_names=names,
        oracle_calls=num_calls,
        certificate=certify(known.values[members], reference, kl=kl, beta=known.beta, delta=delta),
        upper_bound=reference,
        size_bound=size_bound(known.num_rewards, epsilon, delta, known.beta, known.reward_range),
        smallest=choice.exact,
        observed_factor=observed_factor(own, best),
    )


def open_search(
    oracle: Oracle,
    num_rewards: int,
    beta: float,
    reward_range: tuple[float, float],
    reward_names: Sequence[str],
    oracle_factor: float | Literal["estimate"],
    warm_start: Sequence[OracleResult | tuple[ArrayLike, OracleResult]],
    folder: str | Path | None,
    problem: Mapping[str, Any] | None,
) -> tuple[CallLog | None, Known]:
    """The log of the folder's problem, if a folder is given, and what is known before the oracle is asked."""
    identity = {
        "num_rewards": num_rewards,
        "beta": beta,
        "reward_range": [float(end) for end in reward_range],
        "reward_names": list(reward_names),
        "problem": dict(problem) if problem is not None else getattr(oracle, "problem", None),
    }
    log = CallLog(Path(folder) / CALLS_FILE, identity) if folder is not None else None
    known = Known(num_rewards, beta, reward_range, oracle_factor)
    known.calls += [warm_call(item, num_rewards, reward_range, place) for place, item in enumerate(warm_start)]
    known.calls += log.calls if log is not None else []
    return log, known


def ask_oracle(
    oracle: Oracle,
    weights: FloatArray,
    num_rewards: int,
    reward_range: tuple[float, float],
    num_calls: int,
    log: CallLog | None,
) -> OracleResult:
    """The oracle's answer, checked; whatever it raises becomes a [`PortfolioError`] that says what is kept."""
    where = f"The oracle's answer to w = {np.array2string(weights, precision=4, separator=', ')}"
    kept = f" The {num_calls} answers before it are kept in {log.path}: build again to go on." if log is not None else ""
    try:
        result = oracle(weights.copy())
    except Exception as error:
        raise PortfolioError(f"{where} did not come: {type(error).__name__}: {error}.{kept}") from error
    return checked_result(result, num_rewards, reward_range, where)


def warm_call(
    item: OracleResult | tuple[ArrayLike, OracleResult], num_rewards: int, reward_range: tuple[float, float], place: int
) -> OracleCall:
    """A policy that exists, as an answer that cost no call; its weights are NaN where it was trained for none."""
    weights: ArrayLike | None = None
    if not isinstance(item, OracleResult):
        try:
            weights, item = item
        except (TypeError, ValueError) as error:
            raise PortfolioError(f"warm_start[{place}] must be an OracleResult or a pair (weights, OracleResult).") from error
    result = checked_result(item, num_rewards, reward_range, f"warm_start[{place}]")
    asked = np.full(num_rewards, np.nan) if weights is None else check_weights(weights, num_rewards)
    return OracleCall(asked, result, warm=True)


def _grid_shares(search: str, epsilon: float, delta: float, beta: float, split: tuple[float, float, float]) -> Shares | None:
    """Tolerances on the grid, and those of the grid: (1 - eps_search) / (1 + eps_grid) = 1 - (their shares) epsilon."""
    if search == "corners":
        return None
    if search != "grid":
        raise PortfolioError(f"search={search!r} is unknown; use 'corners' or 'grid'.")
    if not (epsilon > 0 and delta > 0 and beta == 0 and split[0] > 0):
        raise PortfolioError(
            "search='grid' needs epsilon > 0 and delta > 0 (its geometric levels end at a floor), a share of them in `split`, "
            "and beta = 0 (with a KL term the objective has no scale). search='corners' needs none of these."
        )
    grid, on_grid, _ = split
    rest = 1 - grid * epsilon
    return on_grid * epsilon / rest, on_grid * delta, (grid * epsilon / rest, grid * delta)


def _too_many(num_calls: int, gap: float | None, goal: float, measure: Measure, log: CallLog | None) -> str:
    reached = "some rewards were not asked yet" if gap is None else f"the {measure.name} is {gap:.4g}, asked: {goal:.4g}"
    kept = f" The answers are kept in {log.path}." if log is not None else ""
    return (
        f"After max_calls={num_calls} calls {reached}. Raise max_calls or the tolerance, or pass num_members for the best that "
        f"so many of the policies found can do.{kept}"
    )


def checked_options(
    num_rewards: int,
    epsilon: float,
    delta: float,
    beta: float,
    reward_range: tuple[float, float],
    reward_names: Sequence[str] | None,
    split: tuple[float, float, float],
    oracle_factor: float | str,
    num_members: int | None,
) -> tuple[str, ...]:
    """The names of the rewards; [`PortfolioError`] for an option that cannot be used."""
    if num_rewards < 2:
        raise PortfolioError(f"A portfolio needs at least 2 rewards, got num_rewards={num_rewards}.")
    if not (epsilon == 0 or 1e-6 <= epsilon < 1):
        raise PortfolioError(f"epsilon must be 0 or lie in [1e-6, 1), got {epsilon}; it is a share, 0.05 for 5 %.")
    if not (math.isfinite(delta) and delta >= 0 and epsilon + delta >= 1e-6):
        raise PortfolioError(f"delta must not be negative, and epsilon or delta be at least 1e-6; got {epsilon=}, {delta=}.")
    if not (math.isfinite(beta) and beta >= 0):
        raise PortfolioError(f"beta must not be negative, got {beta}.")
    low, high = reward_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise PortfolioError(f"reward_range must be (least, greatest), got {reward_range}.")
    if epsilon > 0 and low < 0:
        raise PortfolioError(
            f"A relative gap (epsilon={epsilon:g}) needs rewards that are not negative, and reward_range starts at {low:g}: "
            "shift the rewards to start at 0, or use epsilon=0 with delta > 0."
        )
    if len(split) != 3 or min(split) < 0 or abs(sum(split) - 1) > 1e-9 or split[1] == 0:
        raise PortfolioError(
            f"split must be three shares (grid, search, pruning) that add up to 1, the search's above 0; got {split}."
        )
    if oracle_factor != "estimate" and not (isinstance(oracle_factor, int | float) and 0 <= oracle_factor < 1):
        raise PortfolioError(f"oracle_factor must lie in [0, 1) or be 'estimate', got {oracle_factor!r}.")
    if isinstance(oracle_factor, int | float) and delta == 0 and oracle_factor >= epsilon:
        raise PortfolioError(
            f"With an oracle that may miss {oracle_factor:g} of the best, no number of calls certifies epsilon={epsilon:g}: "
            "ask for more than the factor."
        )
    if oracle_factor != 0 and low < 0:
        raise PortfolioError(f"oracle_factor is a share of the best, which reward_range={reward_range} may make negative; use 0.")
    if num_members is not None and num_members < 1:
        raise PortfolioError(f"num_members must be at least 1, got {num_members}.")
    names = tuple(reward_names) if reward_names is not None else tuple(f"reward_{place}" for place in range(num_rewards))
    if len(names) != num_rewards or len(set(names)) != num_rewards:
        raise PortfolioError(f"reward_names must be {num_rewards} different names, got {list(names)}.")
    return names
