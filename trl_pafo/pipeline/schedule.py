"""Which stages of a run may be done side by side, and in which order."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from trl_pafo.pipeline.stage import Stage


class Round(NamedTuple):
    """Stages of a run that wait for no later round: cheap ones, one after the other, then trainings, which wait only for each other."""

    cheap: list[Stage]
    trainings: list[Stage]


def rounds(stages: Sequence[Stage]) -> list[Round]:
    """The stages of a run, each after those that it needs, in rounds; what is cheap and made from trainings begins a new one."""
    by_name = {stage.name: stage for stage in stages}

    @cache
    def number(name: str) -> int:
        stage = by_name[name]
        return max((number(need) + (by_name[need].trains and not stage.trains) for need in stage.needs), default=0)

    found = [Round([], []) for _ in range(max((number(stage.name) for stage in stages), default=0) + 1)]
    for stage in stages:
        of_round = found[number(stage.name)]
        (of_round.trainings if stage.trains else of_round.cheap).append(stage)
    return found


def in_turn(stages: Sequence[Stage]) -> list[Round]:
    """A round a stage, so that each result is told before the next training."""
    return [Round([], [stage]) if stage.trains else Round([stage], []) for stage in stages]


def longest_first(trainings: Sequence[Stage]) -> list[Stage]:
    """Trainings by their steps and those of the trainings that wait for them, so that what ends last begins first."""

    @cache
    def steps_from(name: str) -> int:
        own = next(stage.steps for stage in trainings if stage.name == name)
        return own + max((steps_from(stage.name) for stage in trainings if name in stage.needs), default=0)

    return sorted(trainings, key=lambda stage: -steps_from(stage.name))
