"""Convex sets of weights known by their corners: what some answers leave, where a member is best."""

import numpy as np

from trl_pafo.palm.core import FloatArray

_ON_PLANE = 1e-12
_TIGHT = 1e-10


class WeightRegion:
    """
    A polytope of weights, cut by planes exactly but for rounding.

    Every corner is one of its points. Every facet lies on a plane `w.n = 0` of the normals, with `w.n >= 0` inside.
    """

    def __init__(self, points: FloatArray, normals: FloatArray):
        self.points, self.normals = points, normals

    @classmethod
    def simplex(cls, num_rewards: int) -> "WeightRegion":
        """All weights."""
        return cls(np.eye(num_rewards), np.eye(num_rewards))

    @property
    def center(self) -> FloatArray:
        """Mean of the points, of shape `(num_rewards,)`."""
        return self.points.mean(axis=0)

    def cut(self, normal: FloatArray) -> "WeightRegion | None":
        """The part with `w.normal >= 0`; `None` if there is none.

        A new corner lies where the plane crosses an edge. Two corners with `num_rewards - 2` constraints in common are taken
        for the ends of one; where more constraints than needed meet, that may add points that are no corners. They lie in
        the polytope, and so change no maximum over it.
        """
        normal = normal / max(float(np.abs(normal).max()), 1e-300)
        heights = self.points @ normal
        if heights.max() < -_ON_PLANE:
            return None
        above, below = heights > _ON_PLANE, heights < -_ON_PLANE
        if not below.any():
            return self
        tight = (np.abs(self.points @ self.normals.T) <= _TIGHT).astype(np.int64)
        first, second = np.nonzero(tight[above] @ tight[below].T >= len(normal) - 2)
        up, down = heights[above][first, None], -heights[below][second, None]
        crossings = (self.points[above][first] * down + self.points[below][second] * up) / (up + down)
        points = np.maximum(np.vstack([self.points[~below], crossings]), 0.0)
        points = points[np.sort(np.unique(points.round(11), axis=0, return_index=True)[1])]
        return WeightRegion(points / points.sum(axis=1, keepdims=True), np.vstack([self.normals, normal]))

    def cells(self, values: FloatArray, costs: FloatArray) -> "list[WeightRegion | None]":
        """For each policy, by its values and its cost (beta times KL), the part in which none earns more; `None` where it is
        nowhere the best.
        """
        net = values - costs[:, None]  # w.net = w.values - cost, since the weights add up to 1
        found: list[WeightRegion | None] = []
        for own in net:
            cell: WeightRegion | None = self
            for normal in np.unique(own - net, axis=0):
                cell = None if cell is None else cell.cut(normal)
            found.append(cell)
        return found
