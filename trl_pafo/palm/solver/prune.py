"""The fewest policies of a pool that keep a promise over the whole simplex; the best that a fixed number of them can do.

Both are covers of weights by policies. A cover of finitely many weights says nothing about the weights between them, so
it is certified over the simplex, and the weights at which it fails become rows of the next cover, until none fails. No
weight is ever a row that need not be covered, so a smallest cover that holds everywhere is a smallest of all. (The cover
is the paper's; the cutting planes, so that it does not leak off the grid, are ours.)
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.core import FloatArray
from trl_pafo.palm.solver.bounds import Reference
from trl_pafo.palm.solver.certificate import Measure, corner_values
from trl_pafo.palm.solver.cover import BoolArray, Cover, minimum_cover
from trl_pafo.palm.solver.polytope import MAX_MOVE

# How far from the least gap a choice of K may be.
_GAP_STEP = 1e-6
# A relative gap beyond this is as good as none.
_GAP_LIMIT = 1e6
# Nodes of branch and bound that one choice may take, and what a program costs besides: 20 seconds for 140 policies.
NODES = 500
_NODES_A_PROGRAMME = 10


class Choice(NamedTuple):
    """Places of the chosen policies in the pool, their certified gap, and whether no better choice exists."""

    members: list[int]
    gap: float
    exact: bool


@dataclass
class Pruner:
    """
    Chooses among the policies of a pool, of which it has values and costs (beta times KL).

    The choice is compared with the reference by the measure. `nodes` of branch and bound may be taken by one choice; 0 for greedy
    covers alone.
    """

    values: FloatArray
    costs: FloatArray
    reference: Reference
    measure: Measure
    nodes: int = NODES

    def __post_init__(self) -> None:
        # Equal policies make equal columns; one of each is enough.
        both = np.column_stack([self.values, self.costs]).round(12)
        self._distinct = np.sort(np.unique(both, axis=0, return_index=True)[1])
        corners, upper, _ = corner_values(self.values[self._distinct], self.costs[self._distinct], self.reference)
        self._gaps = self._rows(corners, upper)

    def smallest(self, goal: float) -> Choice:
        """The fewest policies with a certified gap of at most `goal`; of as few policies, those with the least gap.

        Raises:
            PortfolioError: If not even the whole pool keeps it.
        """
        columns, exact = self._greedy_choice(goal), False
        # The rows that greedy covers needed make most of the integer program.
        while self.nodes > 0:
            cover = self._cover(self._gaps <= goal)
            if not cover.exact:
                break
            exact = len(cover.columns) == len(columns)
            if not exact and self._worst(cover.columns) <= goal:
                columns, exact = cover.columns, True
            if exact:
                break
            self._cut(cover.columns, goal)
        better = self._improved(columns, len(columns))
        return Choice(better.members, better.gap, exact)

    def best(self, num_members: int) -> Choice:
        """So many policies, or fewer, with the least certified gap; exact up to 1e-6."""
        return self._improved(self._first_choice(num_members), num_members)

    def _greedy_choice(self, goal: float) -> list[int]:
        while True:
            covers = self._gaps <= goal
            if not covers.any(axis=1).all():
                break
            columns = minimum_cover(covers, nodes=0).columns
            if self._worst(columns) <= goal:
                return columns
            self._cut(columns, goal)
        columns = list(range(len(self._distinct)))
        gap = self._worst(columns)
        if gap > goal:  # but for rounding, a row that no policy covers means that
            raise PortfolioError(
                f"The {len(self.values)} policies have a certified {self.measure.name} of {gap:.4g}, above {goal:.4g}; search "
                "on, or widen the tolerance."
            )
        return columns

    def _improved(self, best: list[int], num_members: int) -> Choice:
        """Halve the interval of the least gap that so many policies can have, from what `best` has down to 0."""
        top, bottom, exact = self._worst(best), 0.0, True
        while top - bottom > _GAP_STEP and bottom < _GAP_LIMIT:
            # Infinite as long as some weight earns nothing with the first choice.
            middle = (top + bottom) / 2 if np.isfinite(top) else 2 * bottom + 1.0
            covers = self._gaps <= middle
            cover = self._cover(covers, num_members) if covers.any(axis=1).all() else None
            if cover is None or len(cover.columns) > num_members:
                exact = exact and (cover is None or cover.exact)
                bottom = middle
                continue
            gap = self._worst(cover.columns)
            if gap < top:
                best, top = cover.columns, gap
            if gap > middle:
                self._cut(cover.columns, middle)
        return Choice([int(place) for place in self._distinct[best]], top, exact)

    def _cover(self, covers: BoolArray, enough: int = 0) -> Cover:
        cover = minimum_cover(covers, max(self.nodes, 0), enough)
        self.nodes -= cover.nodes + _NODES_A_PROGRAMME
        return cover

    def _cut(self, columns: list[int], goal: float) -> None:
        """New rows: weights at which these columns fail."""
        corners, upper, lower = self._corners(columns)
        failed = self.measure.gaps(upper, lower) > goal
        rows = self._rows(corners[failed], upper[failed])
        self._gaps = np.vstack([self._gaps, rows])

    def _worst(self, columns: list[int]) -> float:
        _, upper, lower = self._corners(columns)
        return float(self.measure.gaps(upper, lower).max())

    def _corners(self, columns: list[int]) -> tuple[FloatArray, FloatArray, FloatArray]:
        chosen = self._distinct[columns]
        return corner_values(self.values[chosen], self.costs[chosen], self.reference)

    def _rows(self, weights: FloatArray, upper: FloatArray) -> FloatArray:
        """Gap of each distinct policy alone at each weight, no less than the certificate finds, so that a cut cuts."""
        lower = weights @ self.values[self._distinct].T - self.costs[self._distinct] - 2 * MAX_MOVE
        return self.measure.gaps(upper[:, None], lower)

    def _first_choice(self, num_members: int) -> list[int]:
        """Always the policy that lowers the greatest gap over the rows most."""
        chosen: list[int] = []
        current = np.full((len(self._gaps), 1), np.inf)
        while len(chosen) < num_members:
            after = np.minimum(current, self._gaps)
            column = int(after.max(axis=0).argmin())
            if column in chosen:
                break
            chosen.append(column)
            current = after[:, [column]]
        return sorted(chosen)
