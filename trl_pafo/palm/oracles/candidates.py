"""An exact oracle: the best policy over a finite set of candidate responses a prompt, for any weights, without a GPU.

numpy and scipy alone. `texts` makes the rewards from texts.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logsumexp, rel_entr

from trl_pafo.errors import ConfigError, DataError, PortfolioError
from trl_pafo.palm.core import OracleResult, check_weights
from trl_pafo.storage.files import write_text

SCALE_FILE = "scale.json"
"""Beside a portfolio: how the raw rewards of its reward models became its rewards."""
_KINDS = ("min_max", "sigmoid")


class CandidateOracle:
    """
    Exact oracle of J(w, pi) = w.R(pi) - beta KL(pi || pi_ref) over the policies that choose among given candidates.

    The maximum is known in closed form (the Gibbs policy of KL-regularized reinforcement learning), prompt by prompt:
    pi_w(y) is proportional to pi_ref(y) exp(w.r(y) / beta), with V*(w) = E beta log E_ref exp(w.r / beta). For beta = 0 it
    is the argmax of w.r among the candidates that pi_ref can produce; candidates that tie share the probability in
    proportion to pi_ref, the limit of the formula for beta -> 0.

    Args:
        rewards (`np.ndarray` of shape `(num_prompts, num_candidates, num_rewards)`):
            Rewards in [0, 1]; see [`RewardScale`].
        beta (`float`, *optional*, defaults to `0.0`):
            Weight of the KL divergence, in rewards a nat.
        reference (`np.ndarray` of shape `(num_prompts, num_candidates)` or `(num_candidates,)`, *optional*):
            Probabilities of the reference policy; uniform by default. A candidate of probability 0 does not exist: so
            prompts may have different numbers of candidates (what stands in its rewards does not matter).

    Raises:
        ConfigError: If `beta` is negative or not finite.
        DataError: If rewards or reference are of another shape, not finite, or out of range.
    """

    def __init__(self, rewards: np.ndarray, beta: float = 0.0, reference: np.ndarray | None = None):
        rewards = np.asarray(rewards, dtype=np.float64)
        if rewards.ndim != 3 or 0 in rewards.shape:
            raise DataError(f"`rewards` must have the shape (num_prompts, num_candidates, num_rewards), got {rewards.shape}.")
        if not np.isfinite(beta) or beta < 0:
            raise ConfigError(f"`beta` must be a finite number of at least 0, got {beta}.")
        self.beta = float(beta)
        self.reference = _reference(reference, rewards.shape[:2])
        exists = self.reference > 0
        self.rewards = np.where(exists[:, :, None], rewards, 0.0)
        bad = ~((self.rewards >= 0) & (self.rewards <= 1))
        if bad.any():
            prompt, candidate, reward = np.argwhere(bad)[0]
            raise DataError(
                f"{int(bad.sum())} rewards are not in [0, 1], the first is {self.rewards[prompt, candidate, reward]} (prompt {prompt}, "
                f"candidate {candidate}, reward {reward}). Normalize them, for example by RewardScale.fit(rewards)(rewards)."
            )
        _, self.num_candidates, self.num_rewards = rewards.shape

    def __call__(self, weights: np.ndarray) -> OracleResult:
        """The best policy for `weights`, of shape `(num_rewards,)`: its values and KL, exact, prompt by prompt too.

        What it returns as `policy` is a JSON value that says which policy this is; [`~CandidateOracle.policy`] gives it.
        """
        weights = check_weights(weights, self.num_rewards)
        about = {"candidates": self.num_candidates, "beta": self.beta, "weights": weights.tolist()}
        return self.evaluate(self.policy(weights), about)

    def policy(self, weights: np.ndarray) -> np.ndarray:
        """The best policy for `weights`: probabilities of shape `(num_prompts, num_candidates)`."""
        scores = self._scores(weights)
        scores = scores - scores.max(axis=1, keepdims=True)
        if self.beta == 0:
            tilted = np.where(scores == 0, self.reference, 0.0)
        else:
            # The differences are at most 0, so that a tiny beta gives exp(-inf) = 0 and not inf / inf.
            with np.errstate(over="ignore"):
                tilted = self.reference * np.exp(scores / self.beta)
        return tilted / tilted.sum(axis=1, keepdims=True)

    def evaluate(self, probabilities: np.ndarray, policy: Any = None) -> OracleResult:
        """Values and KL of any policy over the candidates, exact: to compare with, or to start a portfolio from.

        The rows of `probabilities`, of shape `(num_prompts, num_candidates)`, add up to 1. Rows that are no distributions, or a
        candidate that the reference cannot produce, raise [`DataError`].
        """
        probabilities = _distributions(probabilities, self.reference.shape, "`probabilities`")
        if (probabilities[self.reference == 0] > 0).any():
            raise DataError("`probabilities` chooses a candidate that has probability 0 under the reference: its KL is infinite.")
        values = np.einsum("pk,pkd->pd", probabilities, self.rewards)
        kl = rel_entr(probabilities, self.reference).sum(axis=1)
        return OracleResult(values.mean(axis=0), float(kl.mean()), policy, prompt_values=values, prompt_kl=kl)

    def optimum(self, weights: np.ndarray) -> float:
        """V*(w), the largest J(w, pi) of any policy over the candidates."""
        scores = self._scores(weights)
        best = scores.max(axis=1)
        if self.beta == 0:
            return float(best.mean())
        with np.errstate(over="ignore"):
            gain = logsumexp((scores - best[:, None]) / self.beta, b=self.reference, axis=1)
        return float((best + self.beta * gain).mean())

    @property
    def problem(self) -> dict[str, Any]:
        """What decides the answers, as JSON values."""
        arrays = hashlib.sha256(self.rewards.tobytes() + self.reference.tobytes()).hexdigest()[:16]
        return {"oracle": "candidates", "shape": list(self.rewards.shape), "beta": self.beta, "rewards": arrays}

    def _scores(self, weights: np.ndarray) -> np.ndarray:
        return np.where(self.reference > 0, self.rewards @ check_weights(weights, self.num_rewards), -np.inf)


def _reference(reference: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if reference is None:
        return np.full(shape, 1.0 / shape[1])
    reference = np.asarray(reference, dtype=np.float64)
    return _distributions(np.broadcast_to(reference, shape) if reference.shape == shape[1:] else reference, shape, "`reference`")


def _distributions(values: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.shape != shape:
        raise DataError(f"{what} must have the shape (num_prompts, num_candidates) = {shape}, got {values.shape}.")
    if not (values >= 0).all() or not np.allclose(values.sum(axis=1), 1.0, rtol=0, atol=1e-6):
        raise DataError(f"{what} must hold probabilities that add up to 1 for each prompt.")
    return values / values.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class RewardScale:
    """
    Raw rewards into [0, 1], reward by reward, since no two reward models share a scale. (Not from the paper.)

    Both scales keep the order of the responses under each reward. Fitted once, a scale serves texts that come later.

    Parameters:
        kind (`str`):
            `"min_max"`: (r - origin) / unit, cut to [0, 1], with the least reward seen as origin and the range as unit.
            Affine within what was seen, so means stay comparable; hangs on the two extremes. `"sigmoid"`: sigmoid((r -
            origin) / unit), with mean and standard deviation; no response can be out of range.
        origin (`np.ndarray` of shape `(num_rewards,)`):
            Raw reward that becomes 0 (`min_max`) or 1/2 (`sigmoid`).
        unit (`np.ndarray` of shape `(num_rewards,)`):
            Positive; raw rewards.
    """

    kind: str
    origin: np.ndarray
    unit: np.ndarray

    @classmethod
    def fit(cls, rewards: np.ndarray, kind: str = "min_max") -> "RewardScale":
        """The scale of raw rewards of shape `(..., num_rewards)`.

        Raises:
            ConfigError: If `kind` is unknown.
            DataError: If a reward is not finite, or the same for all responses.
        """
        if kind not in _KINDS:
            raise ConfigError(f"`kind` must be {' or '.join(_KINDS)}, got {kind!r}.")
        flat = np.asarray(rewards, dtype=np.float64).reshape(-1, np.shape(rewards)[-1])
        if not len(flat) or not np.isfinite(flat).all():
            raise DataError("Raw rewards must be finite, and there must be some. Score the texts again.")
        constant = np.flatnonzero(np.ptp(flat, axis=0) == 0)
        if len(constant):
            raise DataError(f"Reward {constant[0]} is the same for all responses, so it says nothing. Leave it out.")
        if kind == "min_max":
            return cls(kind, flat.min(axis=0), np.ptp(flat, axis=0))
        return cls(kind, flat.mean(axis=0), flat.std(axis=0))

    def each(self) -> list["RewardScale"]:
        """The scale of each reward alone."""
        return [RewardScale(self.kind, *pair) for pair in zip(self.origin[:, None], self.unit[:, None], strict=True)]

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_text(path, json.dumps({"kind": self.kind, "origin": self.origin.tolist(), "unit": self.unit.tolist()}) + "\n")

    @classmethod
    def load(cls, path: Path, num_rewards: int) -> "RewardScale":
        """The scale of so many rewards that [`~RewardScale.save`] wrote.

        Raises:
            PortfolioError: If the file holds no such scale.
        """
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            kind, origin, unit = row["kind"], *(np.asarray(row[name], dtype=np.float64) for name in ("origin", "unit"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PortfolioError(
                f"{path} cannot be read as a scale of rewards ({error!r}); build the portfolio again."
            ) from error
        fits = origin.shape == unit.shape == (num_rewards,) and np.isfinite([origin, unit]).all() and (unit > 0).all()
        if not fits or kind not in _KINDS:
            raise PortfolioError(
                f"{path} is no scale of {num_rewards} rewards, which has the `kind` {' or '.join(_KINDS)} and for each reward a finite "
                f"`origin` and a positive `unit`; got {row!r:.200}. Build the portfolio again."
            )
        return cls(kind, origin, unit)

    def __call__(self, rewards: np.ndarray) -> np.ndarray:
        """Raw rewards of shape `(..., num_rewards)` in [0, 1]."""
        standard = (np.asarray(rewards, dtype=np.float64) - self.origin) / self.unit
        return expit(standard) if self.kind == "sigmoid" else np.clip(standard, 0.0, 1.0)
