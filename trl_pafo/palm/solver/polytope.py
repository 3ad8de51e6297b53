"""All vertices of a polytope, and proof that none is missing.

The vertices come from Qhull. A polytope is *simple* when as many facets meet in each vertex as there are dimensions. Then
each vertex has exactly that many edges, and since vertices and edges make a connected graph, a set of vertices that holds
both ends of every edge is the complete set. This is checked. Where more facets meet in one vertex, they are moved outwards by
random amounts of at most `MAX_MOVE`, which splits it; the polytope can only grow, so what is bounded over the larger one
is bounded over the true one.
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial import HalfspaceIntersection, QhullError

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.core import FloatArray, IntArray

MAX_MOVE = 1e-9
"""The most that a facet is moved, in units of the rewards."""

# The first is none at all: enough unless the polytope is degenerate.
_MOVES = (0.0, 1e-11, 1e-10, MAX_MOVE)
_INSIDE = 1e-9
_APART = 1e-12
# Q0: facets are not merged. Qhull merges nearly equal facets for safety, but then a polytope is never seen to be simple.
_QHULL_OPTIONS = "H Q0"


class Vertices(NamedTuple):
    """`points` of shape `(num_vertices, num_dims)`; `move` is the most that a facet was moved."""

    points: FloatArray
    move: float


def vertices(normals: FloatArray, offsets: FloatArray, interior: FloatArray, movable: int) -> Vertices | None:
    """Vertices of the bounded polytope {x : normals @ x <= offsets}, or `None` where no move gave a set that is provably complete.

    Normals, of shape `(num_facets, num_dims)`, point outward; `interior` is a point well inside. The first `movable` facets may be
    moved.
    """
    random = np.random.default_rng(0).random(movable)
    for move in _MOVES:
        moved = offsets.copy()
        moved[:movable] += move * (0.5 + 0.5 * random)
        try:
            polytope = HalfspaceIntersection(np.column_stack([normals, -moved]), interior, qhull_options=_QHULL_OPTIONS)
        except QhullError:
            continue
        points = np.asarray(polytope.intersections)
        if _is_complete(polytope.dual_facets, normals.shape[1]) and _fits(points @ normals.T - moved, polytope.dual_facets, move):
            return Vertices(points, move)
    return None


def _is_complete(facets_of_vertices: list[list[int]], num_dims: int) -> bool:
    """Whether the polytope is simple and the set holds both ends of every edge."""
    if any(len(facets) != num_dims for facets in facets_of_vertices):
        return False
    facets: IntArray = np.sort(np.asarray(facets_of_vertices, dtype=np.int64), axis=1)
    # Along an edge all facets of its ends stay but one.
    edges = np.concatenate([np.delete(facets, leave_out, axis=1) for leave_out in range(num_dims)])
    counts = np.unique(edges, axis=0, return_counts=True)[1]
    return bool((counts == 2).all())


def _fits(excess: FloatArray, facets_of_vertices: list[list[int]], move: float) -> bool:
    """Whether each vertex lies on its own facets and within all others; unmoved, also away from the others.

    Without this last, Qhull's rounding errors alone would decide how a degenerate vertex is split.
    """
    own = np.asarray(facets_of_vertices, dtype=np.int64)
    if not (np.isfinite(excess).all() and (excess <= _INSIDE).all()):
        return False
    if (np.abs(np.take_along_axis(excess, own, axis=1)) > _INSIDE).any():
        return False
    np.put_along_axis(excess, own, -np.inf, axis=1)
    return move > 0 or not (excess > -_APART).any()


def envelope_corners(values: FloatArray, costs: FloatArray) -> Vertices:
    """The weights at which cells meet, a cell being the weights for which one policy is the best of them.

    `points` are weights, of shape `(num_corners, num_rewards)`; `move` is how far below the true values they were found.

    They are the vertices of {(w, t) : w in the simplex, t >= w.values_k - costs_k for all k}; the corners of the simplex are among
    them. (The corner weights of optimistic linear support: Roijers, 2016.) The costs are beta times KL. Corners that cannot be
    enumerated raise [`PortfolioError`].
    """
    num_policies, num_rewards = values.shape
    lid = float((values.max(axis=1) - costs).max()) + 1.0
    # The last weight is what the others leave: x = (w_1, ..., w_{d-1}, t).
    planes = np.column_stack([values[:, :-1] - values[:, -1:], -np.ones(num_policies)])
    simplex = np.column_stack([-np.eye(num_rewards - 1), np.zeros(num_rewards - 1)])
    last, top = np.append(np.ones(num_rewards - 1), 0.0), np.append(np.zeros(num_rewards - 1), 1.0)
    normals = np.vstack([planes, simplex, last, top])
    offsets = np.concatenate([costs - values[:, -1], np.zeros(num_rewards - 1), [1.0, lid]])
    center = np.full(num_rewards, 1 / num_rewards)
    height = (float((values @ center - costs).max()) + lid) / 2
    found = vertices(normals, offsets, np.append(center[:-1], height), movable=num_policies)
    if found is None:
        raise PortfolioError(
            f"The corner weights of {num_policies} policies with {num_rewards} rewards could not be enumerated. Leave out "
            "policies that are nearly equal, use fewer rewards, or bring the rewards to a scale of about 1."
        )
    below = found.points[found.points[:, -1] < lid - 0.5]
    weights = np.maximum(np.column_stack([below[:, :-1], 1 - below[:, :-1].sum(axis=1)]), 0.0)
    return Vertices(weights / weights.sum(axis=1, keepdims=True), found.move)
