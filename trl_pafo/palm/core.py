"""What an oracle is asked and what it answers; whether a question and an answer can be used."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trl_pafo.errors import PortfolioError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class OracleResult:
    """
    The answer of an oracle to one weight vector: a policy, and what it is worth.

    Parameters:
        values (array of shape `(num_rewards,)`):
            Mean of each reward under the policy, in the order of the weights, in [0, 1].
            The rewards alone: the KL term is never subtracted here.
        kl (`float`, *optional*):
            KL(policy || reference) in nats, the mean over prompts, by default that of `prompt_kl`; needed where `beta > 0`.
        policy (`Any`, *optional*):
            What to serve: a string or a path (a folder with an adapter), or any object as long as nothing is saved. With a
            log or a folder it must be a JSON value or a `Path`.
        prompt_values (array of shape `(num_prompts, num_rewards)`, *optional*):
            Values prompt by prompt, the same prompts in the same order for every answer; `values` is their mean. Needed for
            [`Portfolio.gap_interval`] only.
        prompt_kl (array of shape `(num_prompts,)`, *optional*):
            KL prompt by prompt; needed beside `prompt_values` where `beta > 0`.
    """

    values: ArrayLike
    kl: float | None = None
    policy: Any = None
    prompt_values: ArrayLike | None = None
    prompt_kl: ArrayLike | None = None


Oracle = Callable[[FloatArray], OracleResult]
"""Takes weights of shape `(num_rewards,)` on the simplex, returns the best policy that it can find for them."""


@dataclass(frozen=True)
class OracleCall:
    """
    One policy that is known: an answer of the oracle, or a policy that existed before.

    Parameters:
        weights (array of shape `(num_rewards,)`):
            The weights that the oracle was asked; NaN for an existing policy that was optimized for no known weights.
        result ([`OracleResult`]):
            The checked answer: arrays are `float64`, and a KL that is not known is 0.
        warm (`bool`, *optional*, defaults to `False`):
            The policy was there before the build and cost no call.
    """

    weights: FloatArray
    result: OracleResult
    warm: bool = False

    @property
    def asked(self) -> bool:
        """Whether the policy claims to be the best for its weights."""
        return not bool(np.isnan(self.weights).any())

    def to_json(self) -> dict[str, Any]:
        """As JSON values; floats survive to the last digit. [`PortfolioError`] if the policy is no JSON value."""
        result = self.result
        row: dict[str, Any] = {
            "weights": self.weights.tolist() if self.asked else None,
            "values": np.asarray(result.values).tolist(),
            "kl": result.kl,
            "policy": policy_to_json(result.policy),
        }
        by_prompt = {"prompt_values": result.prompt_values, "prompt_kl": result.prompt_kl}
        row |= {"warm": True} if self.warm else {}
        return row | {name: np.asarray(array).tolist() for name, array in by_prompt.items() if array is not None}

    @classmethod
    def from_json(cls, row: dict[str, Any], num_rewards: int, where: str) -> "OracleCall":
        """The call that [`~OracleCall.to_json`] wrote; [`PortfolioError`], which begins with `where`, if it cannot be used."""
        names = ("weights", "values", "prompt_values", "prompt_kl")
        arrays = {name: np.asarray(row[name], dtype=np.float64) for name in names if name in row and row[name] is not None}
        weights = arrays.pop("weights", np.full(num_rewards, np.nan))
        if row["weights"] is not None:
            try:
                check_weights(weights, num_rewards)
            except PortfolioError as error:
                raise PortfolioError(f"{where}: {error}") from error
        result = OracleResult(kl=row["kl"], policy=row["policy"], **arrays)
        return cls(weights, checked_result(result, num_rewards, where), bool(row.get("warm")))


def check_options(
    epsilon: float, delta: float, beta: float, oracle_factor: float | str, reward_names: Sequence[str], num_rewards: int
) -> None:
    """Raise [`PortfolioError`] unless a portfolio can have these options, those of [`build_portfolio`]."""
    if num_rewards < 2:
        raise PortfolioError(f"A portfolio needs at least 2 rewards, got num_rewards={num_rewards}.")
    if not (epsilon == 0 or 1e-6 <= epsilon < 1):
        raise PortfolioError(f"epsilon must be 0 or lie in [1e-6, 1), got {epsilon}; it is a share, 0.05 for 5 %.")
    if not (math.isfinite(delta) and delta >= 0 and epsilon + delta >= 1e-6):
        raise PortfolioError(f"delta must not be negative, and epsilon or delta be at least 1e-6; got {epsilon=}, {delta=}.")
    if not (math.isfinite(beta) and beta >= 0):
        raise PortfolioError(f"beta must not be negative, got {beta}.")
    if oracle_factor != "estimate":
        if not (isinstance(oracle_factor, int | float) and 0 <= oracle_factor < 1):
            raise PortfolioError(f"oracle_factor must lie in [0, 1) or be 'estimate', got {oracle_factor!r}.")
        if delta == 0 and oracle_factor >= epsilon:
            raise PortfolioError(
                f"With an oracle that may miss {oracle_factor:g} of the best, no number of calls certifies "
                f"epsilon={epsilon:g}: ask for more than the factor."
            )
    if len(reward_names) != num_rewards or len(set(reward_names)) != num_rewards:
        raise PortfolioError(f"reward_names must be {num_rewards} different names, got {list(reward_names)}.")


def check_weights(weights: ArrayLike, num_rewards: int) -> FloatArray:
    """The weights as a `float64` vector that adds up to 1.

    Args:
        weights (array of shape `(num_rewards,)`):
            How much a user cares for each reward: not negative, adding up to 1 within 1e-6.
        num_rewards (`int`):
            Number of rewards.

    Raises:
        PortfolioError: If the shape is another, a weight is NaN or negative, or they do not add up to 1.
    """
    vector = _array(weights, (num_rewards,), "`weights`")
    total, least = float(vector.sum()), float(vector.min())
    if least < -1e-9 or abs(total - 1) > 1e-6:
        raise PortfolioError(
            f"`weights` must lie on the simplex (none negative, adding up to 1), got {_short(vector)} with sum {total:.6g}; "
            "divide them by their sum."
        )
    if least < 0:
        vector = np.maximum(vector, 0.0)
        total = float(vector.sum())
    return vector / total


def checked_result(result: OracleResult, num_rewards: int, where: str, beta: float = 0.0) -> OracleResult:
    """The answer of an oracle with `float64` arrays; `where` says whose it is, for the message, `beta` whether its KL counts.

    Raises:
        PortfolioError: If it is no `OracleResult`, has a wrong shape, holds NaN, lies outside [0, 1], or lacks a KL that counts.
    """
    if not isinstance(result, OracleResult):
        raise PortfolioError(f"{where}: expected an OracleResult(values, kl, policy), got {type(result).__name__}.")
    values = _array(result.values, (num_rewards,), f"{where}: `values`")
    if (values < -1e-9).any() or (values > 1 + 1e-9).any():
        raise PortfolioError(
            f"{where}: the values {_short(values)} are outside [0, 1]. Normalize the rewards, for example (r - least) / "
            "(greatest - least), with the least and greatest value that each can have."
        )
    known: Any = result.kl
    if known is None and result.prompt_kl is not None:
        num_prompts = len(np.atleast_1d(np.asarray(result.prompt_kl, dtype=object)))
        known = _array(result.prompt_kl, (num_prompts,), f"{where}: `prompt_kl`").mean()
    if known is None and beta > 0:
        raise PortfolioError(f"{where} has no `kl`, which the objective w.R - {beta:g} KL needs. Let the oracle return it.")
    try:
        kl = float(0.0 if known is None else known)
    except (TypeError, ValueError) as error:
        raise PortfolioError(f"{where}: `kl` must be a number, got {result.kl!r}.") from error
    if not (np.isfinite(kl) and kl >= -1e-6):
        raise PortfolioError(f"{where}: `kl` must be a number of nats and not negative, got {kl}.")
    prompt_values, prompt_kl = None, None
    if result.prompt_values is not None:
        num_prompts = len(np.asarray(result.prompt_values))
        prompt_values = _array(result.prompt_values, (num_prompts, num_rewards), f"{where}: `prompt_values`")
        if num_prompts == 0 or not np.allclose(prompt_values.mean(axis=0), values, atol=1e-6):
            raise PortfolioError(f"{where}: `values` must be the mean of `prompt_values` over the prompts.")
        if result.prompt_kl is not None:
            prompt_kl = _array(result.prompt_kl, (num_prompts,), f"{where}: `prompt_kl`")
            if not np.isclose(prompt_kl.mean(), kl, atol=1e-6):
                raise PortfolioError(f"{where}: `kl` must be the mean of `prompt_kl` over the prompts.")
    return OracleResult(np.clip(values, 0.0, 1.0), max(kl, 0.0), result.policy, prompt_values, prompt_kl)


def policy_to_json(policy: Any) -> Any:
    """The policy as a JSON value, a path as text; [`PortfolioError`] for anything else."""
    if isinstance(policy, Path):
        return str(policy)
    try:
        json.dumps(policy)
    except (TypeError, ValueError) as error:
        raise PortfolioError(
            f"A policy of type {type(policy).__name__} cannot be written to a file. Let the oracle save it and return its "
            "path as `policy`, or build without `folder`."
        ) from error
    return policy


def _array(value: ArrayLike, shape: tuple[int, ...], name: str) -> FloatArray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PortfolioError(f"{name} must be numbers, got {type(value).__name__}.") from error
    if array.shape != shape:
        raise PortfolioError(f"{name} must have shape {shape}, got {array.shape}.")
    # A sum is finite only if all its terms are; it is the quicker question.
    if not math.isfinite(array.sum()):
        raise PortfolioError(f"{name} holds NaN or infinity: find out which reward gives it, and why.")
    return array


def _short(values: FloatArray) -> str:
    return np.array2string(values, precision=4, separator=", ", threshold=8)
