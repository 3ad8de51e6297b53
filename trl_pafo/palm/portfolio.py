"""The finished portfolio: its members, what is certified of them, the choice for a user; saved and loaded."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.core import FloatArray, IntArray, OracleCall, check_weights
from trl_pafo.palm.solver.bounds import UpperBound
from trl_pafo.palm.solver.certificate import Certificate, Measure, objective_name
from trl_pafo.palm.solver.resampling import gap_interval
from trl_pafo.storage.run_folder import write_text

PORTFOLIO_FILE = "portfolio.json"
_FORMAT = "trl-pafo portfolio 1"


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
        reward_range (`tuple[float, float]`):
            Least and greatest value that a reward can have.
        reward_names (`tuple[str, ...]`):
            Names of the rewards, in the order of the weights.
        oracle_calls (`int`):
            Calls of the oracle, those of interrupted builds among them; policies that existed before are not.
        certificate ([`Certificate`]):
            The worst case over all weights against `upper_bound`.
        upper_bound ([`UpperBound`]):
            What the answers say about the optimum.
        size_bound (`int`, *optional*):
            So many members would be enough for any problem with these tolerances; `None` where delta is 0. See
            [`size_bound`][trl_pafo.palm.size_bound].
        smallest (`bool`):
            No fewer of the known policies keep the tolerance (or, where the number of members was given, no other choice of
            so many has a smaller gap). `False` where the choice was greedy.
        observed_factor (`float`):
            By how much an answer was beaten at its own weights by another known policy; 0 if the oracle may be exact.
    """

    calls: tuple[OracleCall, ...]
    members: tuple[int, ...]
    epsilon: float
    delta: float
    beta: float
    reward_range: tuple[float, float]
    reward_names: tuple[str, ...]
    oracle_calls: int
    certificate: Certificate
    upper_bound: UpperBound
    size_bound: int | None
    smallest: bool
    observed_factor: float

    weights: FloatArray = field(init=False, repr=False)
    """Weights that each member was optimized for, of shape `(num_members, num_rewards)`; NaN where none are known."""
    values: FloatArray = field(init=False, repr=False)
    """Mean rewards of each member, of shape `(num_members, num_rewards)`; without the KL term."""
    kl: FloatArray = field(init=False, repr=False)
    """KL of each member to the reference policy in nats, of shape `(num_members,)`."""

    def __post_init__(self) -> None:
        chosen = [self.calls[place] for place in self.members]
        object.__setattr__(self, "weights", np.array([call.weights for call in chosen]))
        object.__setattr__(self, "values", np.array([call.result.values for call in chosen]))
        object.__setattr__(self, "kl", np.array([call.result.kl for call in chosen]))
        object.__setattr__(self, "_costs", self.beta * self.kl)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def policies(self) -> tuple[Any, ...]:
        """What the oracle returned as each member's policy."""
        return tuple(self.calls[place].result.policy for place in self.members)

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
        vector = check_weights(weights, self.values.shape[1])
        return int((self.values @ vector - self._costs).argmax())  # type: ignore[attr-defined]

    def choose_many(self, weights: ArrayLike) -> IntArray:
        """[`~Portfolio.choose`] for each row of an array of shape `(num_users, num_rewards)`."""
        rows = np.asarray(weights, dtype=np.float64)
        num_rewards = self.values.shape[1]
        if rows.ndim != 2 or rows.shape[1] != num_rewards:
            raise PortfolioError(f"`weights` must have shape (num_users, {num_rewards}), got {rows.shape}.")
        off = ~((rows >= -1e-9).all(axis=1) & (np.abs(rows.sum(axis=1) - 1) <= 1e-6))
        if off.any():
            check_weights(rows[off.argmax()], num_rewards)
        return (rows @ self.values.T - self._costs).argmax(axis=1)  # type: ignore[attr-defined]

    def gap_interval(self, num_resamples: int = 200, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Interval of `gap` for noise in the values: the certificate again on resamples of the prompts.

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
        return gap_interval(
            list(self.calls),
            list(self.members),
            self.upper_bound,
            self.measure,
            num_resamples=num_resamples,
            level=level,
            seed=seed,
        )

    def table(self) -> str:
        """The members as a Markdown table: weights, values, KL, and the objective at their own weights."""
        names = self.reward_names
        head = ["member", *(f"w {name}" for name in names), *names, "KL", self.objective]
        rows = []
        for place, (weights, values, kl) in enumerate(zip(self.weights, self.values, self.kl, strict=True)):
            own = "-" if np.isnan(weights).any() else f"{weights @ values - self.beta * kl:.4f}"
            asked = ["-" if np.isnan(weight) else f"{weight:.3f}" for weight in weights]
            rows.append([str(place), *asked, *(f"{value:.4f}" for value in values), f"{kl:.3f}", own])
        lines = [head, ["---:"] * len(head), *rows]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

    def __str__(self) -> str:
        bound = f", at most {self.size_bound:,} for any problem" if self.size_bound else ""
        fewest = "the fewest possible" if self.smallest else "chosen greedily"
        return (
            f"Portfolio of {len(self)} members ({fewest} of the {len(self.calls)} known{bound}), {self.oracle_calls} oracle "
            f"calls\n{self.certificate}\n\n{self.table()}"
        )

    def save(self, folder: str | Path) -> None:
        """Write `portfolio.json` into the folder, in one step. Policies are kept as they are named, not copied.

        Raises:
            PortfolioError: If a policy is no JSON value or path, or the folder cannot be written.
        """
        content = {
            "format": _FORMAT,
            "objective": self.objective,
            "gap": self.gap,
            "members": list(self.members),
            "epsilon": self.epsilon,
            "delta": self.delta,
            "beta": self.beta,
            "reward_range": list(self.reward_range),
            "reward_names": list(self.reward_names),
            "oracle_calls": self.oracle_calls,
            "size_bound": self.size_bound,
            "smallest": self.smallest,
            "observed_factor": self.observed_factor,
            "certificate": self.certificate.to_json(),
            "upper_bound": {
                "weights": self.upper_bound.weights.tolist(),
                "bounds": self.upper_bound.bounds.tolist(),
                "factor": self.upper_bound.factor,
            },
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
                raise PortfolioError(f"{path} is no portfolio of this version ({content['format']!r}); build it again.")
            low, high = content["reward_range"]
            bound = content["upper_bound"]
            return cls(
                calls=tuple(OracleCall.from_json(row) for row in content["calls"]),
                members=tuple(content["members"]),
                reward_range=(low, high),
                reward_names=tuple(content["reward_names"]),
                certificate=Certificate.from_json(content["certificate"]),
                upper_bound=UpperBound(
                    np.array(bound["weights"]), np.array(bound["bounds"]), content["beta"], (low, high), bound["factor"]
                ),
                **{key: content[key] for key in _PLAIN},
            )
        except OSError as error:
            raise PortfolioError(f"No portfolio at {path}: {error}. Give the folder that `save` or `build` wrote.") from error
        except (ValueError, KeyError, TypeError, IndexError) as error:
            if isinstance(error, PortfolioError):
                raise
            raise PortfolioError(f"{path} cannot be read as a portfolio ({error!r}); build it again.") from error


_PLAIN = ("epsilon", "delta", "beta", "oracle_calls", "size_bound", "smallest", "observed_factor")
