"""Whom each member serves, what it costs every user, and which group of a population is served worst. (Not from the paper.)"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr

from trl_pafo.data.labels import normalize_labels
from trl_pafo.errors import PortfolioError
from trl_pafo.palm.core import FloatArray, IntArray
from trl_pafo.palm.portfolio import Portfolio
from trl_pafo.palm.solver.bounds import Reference


class GroupService(NamedTuple):
    """How a group is served.

    `gap` and `loss` are means over its users, `low` and `high` the ends of a 95 % interval of the mean gap for which users
    were drawn, `worst_gap` that of its worst-served user. `usage` are shares of its users, a member each.
    """

    name: str
    users: int
    gap: float
    low: float
    high: float
    worst_gap: float
    loss: float
    usage: FloatArray

    @property
    def perplexity(self) -> float:
        """So many members, evenly used, would be as varied as what the group uses."""
        return float(np.exp(entr(self.usage).sum()))


@dataclass(frozen=True)
class Service:
    """
    A population and the members that serve it. Made by [`serve`].

    Parameters:
        portfolio ([`Portfolio`]):
            The portfolio.
        weights (array of shape `(num_users, num_rewards)`):
            The users' weights.
        groups (`tuple[str, ...]`, *optional*):
            Group of each user.
        reference ([`Reference`]):
            What members are held against.
    """

    portfolio: Portfolio
    weights: FloatArray
    groups: tuple[str, ...] | None
    reference: Reference

    members: IntArray = field(init=False, repr=False)
    """The member that serves each user, of shape `(num_users,)`."""
    gaps: FloatArray = field(init=False, repr=False)
    """Gap of each user in the portfolio's measure: no greater than `portfolio.gap`, against the portfolio's own bound."""
    losses: FloatArray = field(init=False, repr=False)
    """What each user misses, V(w) - J(w, member), in units of the rewards."""

    def __post_init__(self) -> None:
        members = self.portfolio.choose_many(self.weights)
        upper = self.reference.at(self.weights)
        earned = (self.weights * self.portfolio.values[members]).sum(axis=1) - self.portfolio.beta * self.portfolio.kl[members]
        object.__setattr__(self, "members", members)
        object.__setattr__(self, "gaps", self.portfolio.measure.gaps(upper, earned))
        object.__setattr__(self, "losses", np.maximum(upper - earned, 0.0))

    @property
    def usage(self) -> FloatArray:
        """Share of the users that each member serves, of shape `(num_members,)`."""
        return self._usage(np.arange(len(self.members)))

    @property
    def entropy(self) -> float:
        """Entropy of the usage in nats."""
        return float(entr(self.usage).sum())

    @property
    def perplexity(self) -> float:
        """exp of the entropy: 1 if one member serves all, the number of members if all serve alike."""
        return float(np.exp(self.entropy))

    def by_group(self, num_resamples: int = 1000, seed: int = 0) -> list[GroupService]:
        """Each group, the worst-served first: by its mean gap.

        Args:
            num_resamples (`int`, *optional*, defaults to `1000`):
                Resamples of the users of a group for the interval.
            seed (`int`, *optional*, defaults to `0`):
                Seed of the resamples.

        Raises:
            PortfolioError: If the users have no groups.
        """
        if self.groups is None:
            raise PortfolioError("The users have no groups: pass `groups`, one name a user.")
        names, rng, found = np.array(self.groups), np.random.default_rng(seed), []
        for name in dict.fromkeys(self.groups):
            mine = np.flatnonzero(names == name)
            gaps = self.gaps[mine]
            means = gaps[rng.integers(len(gaps), size=(num_resamples, len(gaps)))].mean(axis=1)
            low, high = np.quantile(means, [0.025, 0.975])
            found.append(
                GroupService(
                    name,
                    len(mine),
                    float(gaps.mean()),
                    float(low),
                    float(high),
                    float(gaps.max()),
                    float(self.losses[mine].mean()),
                    self._usage(mine),
                )
            )
        return sorted(found, key=lambda group: -group.gap)

    @property
    def worst_group(self) -> GroupService:
        """The group with the greatest mean gap; [`PortfolioError`] if the users have no groups."""
        return self.by_group()[0]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        result: dict[str, Any] = {
            "users": len(self.members),
            "objective": self.portfolio.objective,
            "measure": self.portfolio.measure.name,
            "reference": self.reference.name,
            "usage": self.usage.tolist(),
            "entropy": self.entropy,
            "perplexity": self.perplexity,
            "mean_gap": float(self.gaps.mean()),
            "worst_gap": float(self.gaps.max()),
            "certified_gap": self.portfolio.gap,
        }
        if self.groups is not None:
            result["groups"] = [
                {**group._asdict(), "usage": group.usage.tolist(), "perplexity": group.perplexity} for group in self.by_group()
            ]
        return result

    def __str__(self) -> str:
        shares = ", ".join(f"{place}: {share:.1%}" for place, share in enumerate(self.usage))
        lines = [
            f"{len(self.members)} users, {self.portfolio.measure.name} {self.gaps.mean():.4f} in the mean, {self.gaps.max():.4f} "
            f"at worst (certified: {self.portfolio.gap:.4f}); objective {self.portfolio.objective}; against the {self.reference.name}",
            f"usage {shares}; entropy {self.entropy:.3f} nats, perplexity {self.perplexity:.2f} of {len(self.portfolio)} members",
        ]
        if self.groups is not None:
            groups = self.by_group()
            for group in groups:
                lines.append(
                    f"  {group.name}: {group.users} users, gap {group.gap:.4f} [{group.low:.4f}, {group.high:.4f}], worst user "
                    f"{group.worst_gap:.4f}, loss {group.loss:.4f}, {np.count_nonzero(group.usage)} members used"
                )
            chance = len(groups) > 1 and groups[1].high >= groups[0].low
            lines.append(
                f"worst-served group: {groups[0].name}" + (" (perhaps by chance: the intervals overlap)" if chance else "")
            )
        return "\n".join(lines)

    def _usage(self, users: IntArray) -> FloatArray:
        return np.bincount(self.members[users], minlength=len(self.portfolio)) / len(users)


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
            What members are held against; by default the portfolio's upper bound of the optimum, so that no gap is too low.

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
        raise PortfolioError(f"There are {len(rows)} users and {len(groups)} groups: give one group a user.")
    names = None if groups is None else tuple(normalize_labels(groups, "group", "The users"))
    return Service(portfolio, rows, names, portfolio.upper_bound if reference is None else reference)
