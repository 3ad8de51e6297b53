"""The finished portfolio: its members, what is certified of them, the choice for a user; saved and loaded."""

import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.errors import PortfolioError
from trl_pafo.metrics.intervals import fewest_users
from trl_pafo.palm.core import FloatArray, IntArray, OracleCall, OracleResult, check_options, check_weights
from trl_pafo.palm.solver.bounds import UpperBound
from trl_pafo.palm.solver.certificate import Certificate, Measure, certify, corner_values, objective_name
from trl_pafo.palm.solver.search import Known
from trl_pafo.storage.files import write_text

PORTFOLIO_FILE = "portfolio.json"
_FORMAT = "trl-pafo portfolio 2"
_PLAIN = ("epsilon", "delta", "beta", "oracle_factor", "smallest")


def promise_of(certificate: Certificate, epsilon: float, delta: float) -> str:
    """Whether a portfolio keeps the tolerances that were asked for, in a sentence."""
    measure, goal = Measure.of(epsilon, delta)
    gap = certificate.gap(measure)
    name = "epsilon" if measure.relative else "delta"
    if gap <= goal + 1e-9:
        return f"The promise is kept: over all weights the {measure.name} is at most {gap:.4f}, within {name} = {goal:g}."
    return (
        f"The promise is not kept with so few: the {measure.name} is {gap:.4f} at the worst weights, above {name} = {goal:g}. Ask for more "
        "members, or leave their number open."
    )


@dataclass(frozen=True)
class Portfolio:
    """
    A few policies, one of which is near the best for every preference weight.

    Made by [`build_portfolio`] or [`Portfolio.load`].

    Parameters:
        calls (`tuple[OracleCall, ...]`):
            Every policy that is known, in the order in which it became known: what the certificate rests on.
        members (`tuple[int, ...]`):
            Places in `calls` of the policies that are kept. `weights`, `values`, `kl` and `policies` are theirs, in this
            order, and [`~Portfolio.choose`] returns a place in this order.
        epsilon (`float`):
            Relative tolerance that was asked.
        delta (`float`):
            Additive tolerance that was asked, in units of the rewards.
        beta (`float`):
            Weight of the KL term in the objective, in units of the rewards a nat.
        reward_names (`tuple[str, ...]`):
            Names of the rewards, in the order of the weights.
        oracle_factor (`float` or `"estimate"`):
            The share of the best that the oracle may miss, see [`build_portfolio`].
        smallest (`bool`):
            No fewer of the known policies keep the tolerance (or, where the number of members was given, no other choice of
            so many has a smaller gap). `False` where the choice was greedy.
    """

    calls: tuple[OracleCall, ...]
    members: tuple[int, ...]
    epsilon: float
    delta: float
    beta: float
    reward_names: tuple[str, ...]
    oracle_factor: float | Literal["estimate"]
    smallest: bool

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def weights(self) -> FloatArray:
        """Weights that each member was optimized for, of shape `(num_members, num_rewards)`; NaN where none are known."""
        return np.array([self.calls[place].weights for place in self.members])

    @cached_property
    def values(self) -> FloatArray:
        """Mean rewards of each member, of shape `(num_members, num_rewards)`; without the KL term."""
        return np.array([self.calls[place].result.values for place in self.members])

    @cached_property
    def kl(self) -> FloatArray:
        """KL of each member to the reference policy in nats, of shape `(num_members,)`."""
        return np.array([self.calls[place].result.kl for place in self.members])

    @property
    def policies(self) -> tuple[Any, ...]:
        """What the oracle returned as each member's policy."""
        return tuple(self.calls[place].result.policy for place in self.members)

    @property
    def oracle_calls(self) -> int:
        """Calls of the oracle, those of interrupted builds among them; policies that existed before are not."""
        return sum(not call.warm for call in self.calls)

    @cached_property
    def _known(self) -> Known:
        return Known(len(self.reward_names), self.beta, self.oracle_factor, list(self.calls))

    @cached_property
    def upper_bound(self) -> UpperBound:
        """What the oracle's answers say about the optimum."""
        return self._known.upper_bound()

    @cached_property
    def observed_factor(self) -> float:
        """By how much an answer was beaten at its own weights by another known policy; 0 if the oracle may be exact."""
        return self._known.observed_factor()

    @cached_property
    def certificate(self) -> Certificate:
        """The worst case over all weights against `upper_bound`."""
        return certify(self.values, self.upper_bound, kl=self.kl, beta=self.beta, delta=self.delta)

    @property
    def objective(self) -> str:
        """What is maximized and was certified: `"w.R"`, or with its KL term."""
        return objective_name(self.beta)

    @property
    def measure(self) -> Measure:
        """The gap that was to be small."""
        return Measure.of(self.epsilon, self.delta)[0]

    @property
    def gap(self) -> float:
        """Certified gap over all weights: relative and beyond `delta` where epsilon > 0, else additive."""
        return self.certificate.gap(self.measure)

    def choose(self, weights: ArrayLike) -> int:
        """The member that is the best for these weights: argmax of w.values - beta kl. No model is called.

        Args:
            weights (array of shape `(num_rewards,)`):
                Weights on the simplex.

        Raises:
            PortfolioError: If the weights are off the simplex.
        """
        return int(self.choose_many(check_weights(weights, self.values.shape[1])[None])[0])

    def choose_many(self, weights: ArrayLike) -> IntArray:
        """[`~Portfolio.choose`] for each row of an array of shape `(num_users, num_rewards)`."""
        rows = np.asarray(weights, dtype=np.float64)
        num_rewards = self.values.shape[1]
        if rows.ndim != 2 or rows.shape[1] != num_rewards:
            raise PortfolioError(f"`weights` must have shape (num_users, {num_rewards}), got {rows.shape}.")
        off = ~((rows >= -1e-9).all(axis=1) & (np.abs(rows.sum(axis=1) - 1) <= 1e-6))
        if off.any():
            check_weights(rows[off.argmax()], num_rewards)
        return (rows @ self.values.T - self.beta * self.kl).argmax(axis=1)

    def gap_interval(self, num_resamples: int = 200, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Percentile interval of `gap` over resamples of the prompts; NaN, unknown, of fewer than 6 prompts (at 95 %).

        Values and upper bound are both computed anew. The same prompts are drawn for all policies, so that what makes a prompt
        hard for all of them cancels. (Not from the paper.)

        Args:
            num_resamples (`int`, *optional*, defaults to `200`):
                Number of resamples.
            level (`float`, *optional*, defaults to `0.95`):
                Share of the resamples inside the interval.
            seed (`int`, *optional*, defaults to `0`):
                Seed of the resampling.

        Raises:
            PortfolioError: If an answer has no `prompt_values` (or no `prompt_kl` where `beta > 0`), or their numbers of
                prompts differ.
        """
        if num_resamples < 1 or not 0 < level < 1:
            raise PortfolioError(f"num_resamples={num_resamples} must be positive and level={level} lie in (0, 1).")
        table = self._prompt_table()
        num_prompts = table.shape[1]
        if num_prompts < fewest_users(level):  # a resample of one prompt is always that prompt
            return math.nan, math.nan
        rng, members, gaps = np.random.default_rng(seed), list(self.members), []
        for _ in range(num_resamples):
            counts = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts))
            means = np.einsum("p,kpr->kr", counts / num_prompts, table)
            calls = [
                replace(call, result=OracleResult(mean[:-1], mean[-1])) for call, mean in zip(self.calls, means, strict=True)
            ]
            known = replace(self._known, calls=calls, oracle_factor=self.upper_bound.factor)
            _, upper, lower = corner_values(known.values[members], known.costs[members], known.upper_bound())
            gaps.append(self.measure.gaps(upper, lower).max())
        low, high = np.quantile(gaps, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def _prompt_table(self) -> FloatArray:
        """Values and KL of each known policy on each prompt, of shape `(num_policies, num_prompts, num_rewards + 1)`."""
        rows = []
        for place, call in enumerate(self.calls):
            values, kl = call.result.prompt_values, call.result.prompt_kl
            if wanted := "prompt_values" if values is None else "prompt_kl" if self.beta > 0 and kl is None else "":
                raise PortfolioError(
                    f"Policy {place} has no `{wanted}`: let the oracle return it, prompt by prompt, for an interval."
                )
            table = np.asarray(values)
            rows.append(np.column_stack([table, np.zeros(len(table)) if kl is None else np.asarray(kl)]))
        if len({len(row) for row in rows}) > 1:
            raise PortfolioError("All policies must be evaluated on the same prompts; their numbers of prompts differ.")
        return np.stack(rows)

    @property
    def promise(self) -> str:
        """Whether the gap that was asked for is kept, in a sentence."""
        return promise_of(self.certificate, self.epsilon, self.delta)

    def table(self) -> str:
        """The members as a Markdown table, by the names of their policies where they have some: weights, values, KL, and the objective at their
        own weights."""
        knows_kl = any(call.result.kl for call in self.calls)  # of a table without a column for it, all are 0
        names = self.reward_names
        head = ["member", *(f"w {name}" for name in names), *names, "KL", self.objective]
        rows = []
        for place, (weights, values, kl) in enumerate(zip(self.weights, self.values, self.kl, strict=True)):
            own = "-" if np.isnan(weights).any() else f"{weights @ values - self.beta * kl:.4f}"
            asked = ["-" if np.isnan(weight) else f"{weight:.3f}" for weight in weights]
            who = f"{place} {self.policies[place]}" if isinstance(self.policies[place], str) else str(place)
            rows.append([who, *asked, *(f"{value:.4f}" for value in values), f"{kl:.3f}" if knows_kl else "unknown", own])
        lines = [head, ["---:"] * len(head), *rows]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

    def __str__(self) -> str:
        fewest = "the fewest possible" if self.smallest else "chosen greedily"
        return (
            f"Portfolio of {len(self)} members ({fewest} of the {len(self.calls)} known), {self.oracle_calls} oracle calls\n"
            f"{self.certificate}\n\n{self.table()}"
        )

    def save(self, folder: str | Path) -> None:
        """Write `portfolio.json` into the folder, in one step. Policies are kept as they are named, not copied.

        Raises:
            PortfolioError: If a policy is no JSON value or path, or the folder cannot be written.
        """
        content = {
            "format": _FORMAT,
            "objective": self.objective,
            "certificate": self.certificate.to_json(),
            "members": list(self.members),
            "reward_names": list(self.reward_names),
            **{name: getattr(self, name) for name in _PLAIN},
            "calls": [call.to_json() for call in self.calls],
        }
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            write_text(Path(folder) / PORTFOLIO_FILE, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise PortfolioError(f"The portfolio cannot be written to {folder}: {error}. Choose another folder.") from error

    @classmethod
    def load(cls, folder: str | Path) -> "Portfolio":
        """The portfolio that [`~Portfolio.save`] wrote, from its folder or the file itself.

        Raises:
            PortfolioError: If there is none, or the file is damaged or of another version.
        """
        path = Path(folder)
        path = path / PORTFOLIO_FILE if path.is_dir() else path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise PortfolioError(f"it is not of this version ({content['format']!r})")
            names, members, options = content["reward_names"], content["members"], {name: content[name] for name in _PLAIN}
            check_options(options["epsilon"], options["delta"], options["beta"], options["oracle_factor"], names, len(names))
            calls = [OracleCall.from_json(row, len(names), f"policy {place}") for place, row in enumerate(content["calls"])]
            places = [place for place in members if type(place) is int and 0 <= place < len(calls)]
            if not members or len(set(places)) < len(members):
                raise PortfolioError(f"`members` must be different places from 0 to {len(calls) - 1}, got {members}")
        except OSError as error:
            raise PortfolioError(f"No portfolio at {path}: {error}. Give the folder that `save` or `build` wrote.") from error
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            what = str(error) if isinstance(error, PortfolioError) else repr(error)
            raise PortfolioError(f"{path} cannot be read as a portfolio ({what}); build it again.") from error
        return cls(calls=tuple(calls), members=tuple(members), reward_names=tuple(names), **options)
