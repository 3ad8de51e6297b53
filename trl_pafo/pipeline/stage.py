"""A step of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_pafo.storage.run_folder import digest_of


@dataclass(frozen=True)
class Stage:
    """A step of a run: its name in the manifest, the file or folder of the run that it makes, all that decides it, and the work."""

    name: str
    output: str
    inputs: dict[str, Any]
    work: Callable[[Path], None]
    needs: tuple[str, ...] = ()  # names of the stages that must be done before; all need data and base
    derived: bool = False  # cheap, so done again without asking where its inputs change
    scores: bool = False  # pairs, of which each of several processes scores its share
    steps: int = 0  # of a stage that trains, and so keeps checkpoints: optimizer steps, about
    instead: "Stage | None" = None  # what is done in its place where the teachers are not worth distilling

    @property
    def digest(self) -> str:
        return digest_of(self.inputs)

    @property
    def trains(self) -> bool:
        return self.steps > 0
