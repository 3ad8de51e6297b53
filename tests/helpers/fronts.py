"""Oracles whose optimum is known in closed form, so that what is certified can be held against the truth."""

from collections.abc import Callable

import numpy as np

from trl_pafo.palm import OracleResult


class Sphere:
    """The quarter sphere {v >= 0 : |v|_2 <= 1}: V*(w) = |w|_2, reached at w / |w|_2."""

    def __init__(self) -> None:
        self.asked: list[np.ndarray] = []

    def __call__(self, weights: np.ndarray) -> OracleResult:
        self.asked.append(weights)
        return OracleResult(weights / np.linalg.norm(weights), policy=f"policy {len(self.asked)}")

    @staticmethod
    def optimum(weights: np.ndarray) -> np.ndarray:
        return np.linalg.norm(weights, axis=1)


class Finite:
    """The best of finitely many policies, by looking at each."""

    def __init__(self, values: np.ndarray):
        self.values = np.asarray(values, dtype=np.float64)
        self.asked: list[np.ndarray] = []

    def __call__(self, weights: np.ndarray) -> OracleResult:
        self.asked.append(weights)
        best = int((self.values @ weights).argmax())
        return OracleResult(self.values[best], policy=best)


class Gibbs:
    """One prompt with finitely many responses, uniform reference: pi proportional to exp(w.r / beta)."""

    def __init__(self, rewards: np.ndarray, beta: float):
        self.rewards, self.beta = rewards, beta

    def __call__(self, weights: np.ndarray) -> OracleResult:
        scores = self.rewards @ weights / self.beta
        policy = np.exp(scores - scores.max())
        policy /= policy.sum()
        kl = float((policy[policy > 0] * np.log(policy[policy > 0] * len(policy))).sum())
        return OracleResult(policy @ self.rewards, kl=kl, policy=policy.round(4).tolist())

    def optimum(self, weights: np.ndarray) -> np.ndarray:
        scores = weights @ self.rewards.T / self.beta
        top = scores.max(axis=1)
        return self.beta * (top + np.log(np.exp(scores - top[:, None]).mean(axis=1)))


def worst_sample(gap: Callable[[np.ndarray], np.ndarray], num_rewards: int, num_samples: int, seed: int = 0) -> float:
    """The greatest gap over random weights, even at first, then closer and closer around the worst ones found."""
    rng = np.random.default_rng(seed)
    worst, centers = -np.inf, rng.dirichlet(np.ones(num_rewards), 1)
    blocks = 20
    for block in range(blocks):
        size = num_samples // blocks
        if block < blocks // 4:
            weights = rng.dirichlet(np.full(num_rewards, rng.choice([0.3, 1.0])), size)
        else:
            width = 0.3 * 0.4 ** (block - blocks // 4)
            weights = np.maximum(centers[rng.integers(0, len(centers), size)] + width * rng.normal(size=(size, num_rewards)), 0)
            weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
            weights = weights[weights.sum(axis=1) > 0.5]
        gaps = gap(weights)
        top = np.argsort(-gaps)[:20]
        centers = np.vstack([weights[top], centers])
        centers = centers[np.argsort(-gap(centers))[:20]]
        worst = max(worst, float(gaps[top[0]]))
    return worst
