"""Models of several groups as one: each scores a pair, and the user's history decides how much each counts. (Not from the paper.)"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.data.group_posterior import GroupLikelihood, fit_temperature, history_scores, mixture_margin, posterior
from trl_pafo.data.groups import FloatArray
from trl_pafo.errors import ConfigError


@dataclass(frozen=True)
class GroupMixture:
    """
    What turns the margins of each group for a pair, and for the past pairs of its user, into one margin.

    Groups are in sorted order, that of all arrays: the temperature of the rewards of each, in reward units, the likelihood of the
    groups given a history, and the share of each group in the training pairs.
    """

    groups: Sequence[str]
    temperature: FloatArray
    likelihood: GroupLikelihood
    share: FloatArray

    @classmethod
    def fit(
        cls,
        shares: Mapping[str, float],
        margins: FloatArray,
        group: Sequence[str],
        past_margins: FloatArray,
        past: Sequence[Sequence[int]],
    ) -> "GroupMixture":
        """Fit to pairs, and past pairs, that nothing was trained on.

        Margins under each group, of shape `(num_pairs, num_groups)` and `(num_past_pairs, num_groups)`, are in reward units. `past`
        says which of the past pairs are the history of each pair; several histories of each may follow each other.
        """
        groups, own = sorted(shares), np.searchsorted(sorted(shares), np.asarray(group))
        temperature = np.array([fit_temperature(margins[own == g, g]) for g in range(len(groups))])
        scores = history_scores(past_margins / temperature, past)
        likelihood = GroupLikelihood.fit(scores, np.resize(own, len(scores)))
        return cls(groups, temperature, likelihood, np.array([shares[name] for name in groups]))

    @classmethod
    def unfitted(cls, shares: Mapping[str, float]) -> "GroupMixture":
        """One that takes rewards and histories at their word: all temperatures are 1."""
        groups, ones = sorted(shares), np.ones(len(shares))
        return cls(groups, ones, GroupLikelihood(1.0, 0 * ones), np.array([shares[name] for name in groups]))

    @classmethod
    def from_json(cls, found: Mapping[str, Any], where: str) -> "GroupMixture":
        """What [`as_json`] gave; [`ConfigError`], which names `where` it was found, if it cannot be that. A prior beside it is checked too."""
        try:
            groups, slope, tau = found["groups"], float(found["slope"]), float(found.get("tau", 0))
            vectors = np.array([found[name] for name in ("bias", "temperature", "share")], dtype=np.float64)
            bias, temperature, share = vectors
            is_right = (
                groups == sorted(set(groups))
                and vectors.shape == (3, len(groups))
                and np.isfinite([slope, *vectors.flat]).all()
                and slope >= 0
                and (vectors[1:] > 0).all()
                and 0 <= tau <= 1
            )
        except (KeyError, TypeError, ValueError):
            is_right = False
        if not is_right:
            raise ConfigError(
                f"{where} is not as trl-pafo writes it: {found!r:.200}. Different groups in sorted order need a `slope` from 0, for each of "
                "them a `bias`, and a positive `temperature` and `share`, all finite, and `tau` in [0, 1]. Train or fit it again."
            )
        return cls(groups, temperature, GroupLikelihood(slope, bias), share)

    def as_json(self) -> dict[str, Any]:
        """All of it as lists and numbers."""
        fitted = {"slope": self.likelihood.slope, "bias": self.likelihood.bias.tolist()}
        return {"groups": list(self.groups), "temperature": self.temperature.tolist(), **fitted, "share": self.share.tolist()}

    def weights(self, past_margins: ArrayLike, past: Sequence[Sequence[int]], tau: float) -> FloatArray:
        """How likely each history makes each group, of shape `(num_rows, num_groups)`, from margins in reward units as in
        [`GroupMixture.fit`].

        With a `tau` of 0, groups have their shares beforehand; with 1, all the same.
        """
        scores = history_scores(np.asarray(past_margins) / self.temperature, past)
        return posterior(self.likelihood.log_likelihood(scores), np.log(self.share), tau)

    def margins(self, margins: ArrayLike, past_margins: ArrayLike, past: Sequence[Sequence[int]], tau: float) -> FloatArray:
        """The log odds of the mixture for each pair, of shape `(num_pairs,)`; the rest is that of [`GroupMixture.weights`]."""
        return mixture_margin(np.asarray(margins) / self.temperature, self.weights(past_margins, past, tau))

    def rewards(self, rewards: ArrayLike, past_margins: ArrayLike, past: Sequence[Sequence[int]], tau: float) -> FloatArray:
        """The mean of the groups' rewards, divided by their temperatures, of shape `(num_rows,)`; the rest is that of
        [`GroupMixture.weights`]. Unlike [`GroupMixture.margins`] it is a number of a response alone, and of a pair where `rewards` are
        margins.
        """
        return (np.asarray(rewards) / self.temperature * self.weights(past_margins, past, tau)).sum(axis=1)
