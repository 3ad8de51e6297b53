"""Rewards of a model that was trained with the names of groups: asked once for each, weighed by the user's past pairs."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from trl_pafo.data import HISTORY_FIELDS
from trl_pafo.data.group_mixture import GroupMixture
from trl_pafo.data.groups import FloatArray
from trl_pafo.data.history import history_of
from trl_pafo.data.messages import content_text
from trl_pafo.data.named_groups import name_group, remembered_groups
from trl_pafo.data.rendering import Reading, plain
from trl_pafo.errors import ConfigError
from trl_pafo.models.scoring import RewardScorer

_KWARGS = "chat_template_kwargs"
_PAST = ("chosen", "rejected")


class GroupScorer(RewardScorer):
    """
    A saved model that reads the name of a group in the prompt ([`~trl_pafo.data.named_groups.name_group`]), for users whose group is
    not known. (Not from the paper.)

    It is asked for each group g: the reward `r_g` of a response, and the margins of the user's past pairs, from which follows how
    likely the history makes the group, `q_g`. The reward is `sum_g q_g r_g / t_g`, with the temperature `t_g` at which the group's
    rewards fit held-out labels best. Without past pairs, `q` is the prior.

    Args:
        folder (`str` or `Path`):
            Folder of the model with its tokenizer, which remembers its groups.
        tau (`float`, *optional*):
            The prior in [0, 1], in place of what is remembered: 0 takes groups for as frequent as in training, 1 for equally frequent.
        options:
            Those of [`RewardScorer`]. `history_max_tokens` and `history_fields` say what a prompt shows of a history, and here none does.

    Raises:
        ConfigError: As [`RewardScorer`], or if an option has no effect.
    """

    def __init__(self, folder: str | Path, *, tau: float | None = None, **options: Any):
        shown = [name for name in ("history_max_tokens", "history_fields") if options.pop(name, None) is not None]
        if shown:
            raise ConfigError(
                f"`{shown[0]}` says what a prompt shows of a history, and {folder} was trained with the names of groups in place of "
                "histories. Leave it out; `num_history` says how many past pairs count."
            )
        if tau is not None and not 0 <= tau <= 1:
            raise ConfigError(f"`tau` must be in [0, 1], got {tau}.")
        super().__init__(folder, history_fields=HISTORY_FIELDS, **options)
        found = remembered_groups(self.tokenizer)
        if found is None:
            raise ConfigError(f"The tokenizer of {folder} remembers no groups. Load it with RewardScorer.from_pretrained.")
        self.mixture = GroupMixture.from_json(found, f"`trl_pafo_groups` of the tokenizer of {folder}")
        self.tau: float = found["tau"] if tau is None else tau

    def sequences(
        self,
        rows: Sequence[Mapping[str, Any]],
        name: Callable[[int], str],
        *,
        allow_no_history: bool = False,
        reading: Reading | None = None,
    ) -> list[dict[Any, list[int]]]:
        """Token ids of the responses of rows, and of the past pairs of their users, each under every group, by the number of the past
        pair (-1 for the row itself), the side and the place of the group.
        """
        given: list[dict[str, Any]] = [plain(row) for row in rows]
        inputs, _ = reading or self.renderer.reading(given, name, allow_no_history=allow_no_history)
        groups = self.mixture.groups
        pairs = [[without_past(row), *self._past(row, inputs)] for row in given]
        keys = [[json.dumps(pair, sort_keys=True, default=str) for pair in own] for own in pairs]
        # A user's past pairs stand in each of its rows, and to render and tokenize takes longer than to score.
        of_row: dict[str, int] = {}
        shown: list[dict[str, Any]] = []
        for place, own in enumerate(pairs):
            for key, pair in zip(keys[place], own, strict=True):
                if key not in of_row:
                    of_row[key] = place
                    shown += [name_group(pair, group) for group in groups]
        first = [place for place in of_row.values() for _ in groups]
        tokens = iter(super().sequences(shown, lambda number: name(first[number]), reading=Reading(inputs, False)))
        found = {key: [next(tokens) for _ in groups] for key in of_row}
        return [
            {
                (number, side, place): ids
                for number, key in enumerate(own, -1)
                for place, sides in enumerate(found[key])
                for side, ids in sides.items()
            }
            for own in keys
        ]

    def _past(self, row: Mapping[str, Any], inputs: str) -> list[dict[str, Any]]:
        """The past pairs that count: the newest."""
        newest = (history_of(row) or [])[: self.renderer.cutter.num_history]
        if inputs == "messages":
            return [{field: entry[field] for field in HISTORY_FIELDS} for entry in newest]
        return [{field: content_text(entry[field]) for field in HISTORY_FIELDS} for entry in newest]

    def combine(self, found: Sequence[Mapping[Any, float]]) -> list[dict[str, float]]:
        """The reward of each response of rows from those of all their sequences."""
        if not found:
            return []
        by_group = [self.by_group(row) for row in found]
        past = [margins for _, margins in by_group]
        ends = np.cumsum([0, *map(len, past)]).tolist()
        of_row = [range(*pair) for pair in pairwise(ends)]
        responses = [(row, side, rewards) for row, (own, _) in enumerate(by_group) for side, rewards in own.items()]
        mixed = self.mixture.rewards(
            np.array([rewards for *_, rewards in responses]),
            np.concatenate(past),
            [of_row[row] for row, *_ in responses],
            self.tau,
        )
        rewards: list[dict[str, float]] = [{} for _ in found]
        for (row, side, _), reward in zip(responses, mixed.tolist(), strict=True):
            rewards[row][side] = reward
        return rewards

    def by_group(self, found: Mapping[Any, float]) -> tuple[dict[str, FloatArray], FloatArray]:
        """What the model gives for the sequences of a row: the rewards of each response, of shape `(num_groups,)`, and the margins of
        its past pairs, of shape `(num_past, num_groups)`.
        """
        groups = range(len(self.mixture.groups))
        sides = dict.fromkeys(side for number, side, _ in found if number < 0)
        own = {side: np.array([found[-1, side, group] for group in groups]) for side in sides}
        num_past = 1 + max(number for number, *_ in found)
        chosen, rejected = (
            np.array([[found[number, side, group] for group in groups] for number in range(num_past)]).reshape(
                num_past, len(groups)
            )
            for side in _PAST
        )
        return own, chosen - rejected


def without_past(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row that is read without a history."""
    variables = {name: value for name, value in (row.get(_KWARGS) or {}).items() if name != "history"}
    return {**{name: value for name, value in row.items() if name != "history"}, _KWARGS: variables}
