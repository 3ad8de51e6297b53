"""Convex sets of weights known by their corners: what some answers leave, what lies between users, where a member is best."""

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.core import FloatArray

_ON_PLANE = 1e-12
_TIGHT = 1e-10
_FLAT = 1e-7


class WeightRegion:
    """
    A polytope of weights, cut by planes exactly but for rounding.

    Args:
        points (array of shape `(num_points, num_rewards)`):
            Weights in it; every corner is one of them.
        normals (array of shape `(num_constraints, num_rewards)`):
            Every facet lies on a plane `w.n = 0` of these, with `w.n >= 0` inside.
        num_dims (`int`):
            Its dimension: at most `num_rewards - 1`.
    """

    def __init__(self, points: FloatArray, normals: FloatArray, num_dims: int):
        self.points, self.normals, self.num_dims = points, normals, num_dims

    @classmethod
    def simplex(cls, num_rewards: int) -> "WeightRegion":
        """All weights."""
        return cls(np.eye(num_rewards), np.eye(num_rewards), num_rewards - 1)

    @classmethod
    def hull(cls, weights: FloatArray) -> "WeightRegion":
        """All weights between some: their convex hull, which may be flat.

        Raises:
            PortfolioError: If Qhull finds no hull.
        """
        origin = weights.mean(axis=0)
        _, sizes, axes = np.linalg.svd(weights - origin, full_matrices=False)
        basis = axes[sizes > _FLAT]
        num_dims = len(basis)
        if num_dims == 0:
            return cls(weights[:1], np.zeros((0, weights.shape[1])), 0)
        places = (weights - origin) @ basis.T
        if num_dims == 1:
            corners = np.array([places.argmin(), places.argmax()])
            outward, offsets = np.array([[-1.0], [1.0]]), places[corners, 0] * np.array([-1.0, 1.0])
        else:
            try:
                hull = ConvexHull(places)
            except QhullError as error:
                raise PortfolioError(
                    f"The hull of {len(weights)} weights cannot be found ({str(error).splitlines()[0]})."
                ) from error
            corners, outward, offsets = hull.vertices, hull.equations[:, :-1], -hull.equations[:, -1]
        # outward.(w - origin) <= offset, written with w alone, which adds up to 1
        outward = outward @ basis
        normals = (outward @ origin + offsets)[:, None] - outward
        return cls(weights[corners], normals, num_dims)

    @property
    def center(self) -> FloatArray:
        """Mean of the points, of shape `(num_rewards,)`."""
        return self.points.mean(axis=0)

    def cut(self, normal: FloatArray) -> "WeightRegion | None":
        """The part with `w.normal >= 0`; `None` if there is none.

        A new corner lies where the plane crosses an edge. Two corners with `num_dims - 1` constraints in common are taken
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
        first, second = np.nonzero(tight[above] @ tight[below].T >= self.num_dims - 1)
        up, down = heights[above][first, None], -heights[below][second, None]
        crossings = (self.points[above][first] * down + self.points[below][second] * up) / (up + down)
        points = np.maximum(np.vstack([self.points[~below], crossings]), 0.0)
        points = points[np.sort(np.unique(points.round(11), axis=0, return_index=True)[1])]
        return WeightRegion(points / points.sum(axis=1, keepdims=True), np.vstack([self.normals, normal]), self.num_dims)

    def cells(self, values: FloatArray, costs: FloatArray) -> "list[WeightRegion | None]":
        """For each policy the part in which none earns more; `None` where it is nowhere among the best.

        Args:
            values (array of shape `(num_policies, num_rewards)`):
                Their values.
            costs (array of shape `(num_policies,)`):
                Their beta KL.
        """
        net = values - costs[:, None]  # w.net = w.values - cost, since the weights add up to 1
        found: list[WeightRegion | None] = []
        for own in net:
            cell: WeightRegion | None = self
            for normal in np.unique(own - net, axis=0):
                cell = None if cell is None else cell.cut(normal)
            found.append(cell)
        return found
