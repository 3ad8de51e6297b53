"""Which member serves whom, what that costs every user, and which group of a population is served worst. (Not from the paper.)"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr

from trl_pafo.data.labels import normalize_labels
from trl_pafo.errors import PortfolioError
from trl_pafo.metrics.intervals import honest_ends
from trl_pafo.metrics.verdict import is_known
from trl_pafo.palm.core import FloatArray, IntArray
from trl_pafo.palm.portfolio import Portfolio
from trl_pafo.palm.solver.bounds import Reference, best_values
from trl_pafo.storage.files import json_ready


class GroupService(NamedTuple):
    """How a group is served.

    `gap` is the mean over its users, `low` and `high` the ends of a 95 % interval of it for which users were drawn (NaN, unknown,
    of fewer than 6), `worst_gap` that of its worst-served user. `usage` are shares of its users, a member each, and `perplexity`
    says how many members, evenly used, would be as varied.
    """

    name: str
    users: int
    gap: float
    low: float
    high: float
    worst_gap: float
    usage: FloatArray
    perplexity: float


@dataclass(frozen=True)
class Service:
    """
    A population and the members that serve it, made by [`serve`]; weights have the shape `(num_users, num_rewards)`, members are
    compared with `reference`.
    """

    portfolio: Portfolio
    weights: FloatArray
    groups: tuple[str, ...] | None
    reference: Reference

    @cached_property
    def members(self) -> IntArray:
        """The member that serves each user, of shape `(num_users,)`."""
        return self.portfolio.choose_many(self.weights)

    @cached_property
    def gaps(self) -> FloatArray:
        """Gap of each user in the portfolio's measure: no greater than `portfolio.gap`, against the portfolio's own bound."""
        earned = best_values(self.weights, self.portfolio.values, self.portfolio.beta * self.portfolio.kl)
        return self.portfolio.measure.gaps(self.reference.at(self.weights), earned)

    @property
    def usage(self) -> FloatArray:
        """Share of the users that each member serves, of shape `(num_members,)`."""
        return self._usage(np.arange(len(self.members)))

    @property
    def perplexity(self) -> float:
        """exp of the entropy of the usage: 1 if one member serves all, the number of members if all serve alike."""
        return _perplexity(self.usage)

    def by_group(self, num_resamples: int = 1000, seed: int = 0) -> list[GroupService]:
        """Each group, the worst-served first: by its mean gap, with an interval over its users. Users without groups raise
        [`PortfolioError`].
        """
        if self.groups is None:
            raise PortfolioError("The users have no groups: pass `groups`, one name per user.")
        names, rng, found = np.array(self.groups), np.random.default_rng(seed), []
        for name in dict.fromkeys(self.groups):
            mine = np.flatnonzero(names == name)
            gaps, usage = self.gaps[mine], self._usage(mine)
            means = gaps[rng.integers(len(gaps), size=(num_resamples, len(gaps)))].mean(axis=1)
            low, high = np.quantile(means, [0.025, 0.975])
            low, high = honest_ends(gaps.mean(), low, high, len(gaps), 0.95)
            worst, perplexity = float(gaps.max()), _perplexity(usage)
            found.append(GroupService(name, len(mine), float(gaps.mean()), float(low), float(high), worst, usage, perplexity))
        return sorted(found, key=lambda group: -group.gap)

    def to_json(self) -> dict[str, Any]:
        """As JSON values; an unknown end of an interval is `None`."""
        result: dict[str, Any] = {
            "users": len(self.members),
            "objective": self.portfolio.objective,
            "measure": self.portfolio.measure.name,
            "reference": self.reference.name,
            "usage": self.usage.tolist(),
            "perplexity": self.perplexity,
            "mean_gap": float(self.gaps.mean()),
            "worst_gap": float(self.gaps.max()),
            "certified_gap": self.portfolio.gap,
        }
        if self.groups is not None:
            result["groups"] = [json_ready({**group._asdict(), "usage": group.usage.tolist()}) for group in self.by_group()]
        return result

    def __str__(self) -> str:
        shares = ", ".join(f"{place}: {share:.1%}" for place, share in enumerate(self.usage))
        lines = [
            f"{len(self.members)} users, {self.portfolio.measure.name} {self.gaps.mean():.4f} in the mean, {self.gaps.max():.4f} "
            f"at worst (certified: {self.portfolio.gap:.4f}); objective {self.portfolio.objective}; against the {self.reference.name}",
            f"usage {shares}; perplexity {self.perplexity:.2f} of {len(self.portfolio)} members",
        ]
        if self.groups is not None:
            groups = self.by_group()
            for group in groups:
                interval = f"[{group.low:.4f}, {group.high:.4f}]" if is_known(group.low) else "[unknown]"
                lines.append(
                    f"  {group.name}: {group.users} users, gap {group.gap:.4f} {interval}, worst user {group.worst_gap:.4f}, "
                    f"{np.count_nonzero(group.usage)} members used"
                )
            chance = len(groups) > 1 and not groups[1].high < groups[0].low
            lines.append(f"worst-served group: {groups[0].name}" + (" (perhaps by chance)" if chance else ""))
        return "\n".join(lines)

    def _usage(self, users: IntArray) -> FloatArray:
        return np.bincount(self.members[users], minlength=len(self.portfolio)) / len(users)


def _perplexity(usage: FloatArray) -> float:
    return float(np.exp(entr(usage).sum()))


def serve(
    portfolio: Portfolio, weights: ArrayLike, groups: Sequence[str] | None = None, *, reference: Reference | None = None
) -> Service:
    """Give every user of a population its member.

    Args:
        portfolio ([`Portfolio`]):
            The portfolio.
        weights (array of shape `(num_users, num_rewards)`):
            The users' weights, each row on the simplex.
        groups (`Sequence[str]`, *optional*):
            Group of each user, such as majority and minority.
        reference ([`Reference`], *optional*):
            What members are compared with; by default the portfolio's upper bound of the optimum, so that no gap is too low.

    Returns:
        [`Service`].

    Raises:
        PortfolioError: If there are no users, weights are off the simplex, or there is not one group a user.
    """
    rows = np.asarray(weights, dtype=np.float64)
    portfolio.choose_many(rows)  # checks the shape and the simplex
    if not len(rows):
        raise PortfolioError("There are no users to serve: `weights` has no rows.")
    if groups is not None and len(groups) != len(rows):
        raise PortfolioError(f"There are {len(rows)} users and {len(groups)} groups: give one group per user.")
    names = None if groups is None else tuple(normalize_labels(groups, "group", "The users"))
    return Service(portfolio, rows, names, portfolio.upper_bound if reference is None else reference)
