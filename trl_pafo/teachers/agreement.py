"""Whether teachers agree with the labels of their own groups: a teacher of another group, or of other texts, does not."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from accelerate.logging import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class Agreement:
    """
    What a teacher says of the pairs of its own group that users have labeled.

    Attributes:
        group (`str`, *optional*):
            The group; `None` for margins of rows without groups.
        num_pairs (`int`):
            Labeled pairs of the group. Pairs under borrowed histories are not among them.
        share (`float`):
            Share of them on which its margin prefers the chosen response, a tie counting half; NaN without pairs.
        margin (`float`):
            Mean margin, in its own reward units.
    """

    group: str | None
    num_pairs: int
    share: float
    margin: float

    def __str__(self) -> str:
        who, whose = f"The teacher of {self.group} prefers", "its group's"
        if self.group is None:
            who, whose = "The teacher margins prefer", "all"
        return f"{who} the chosen response in {self.share:.1%} of {whose} {self.num_pairs:,} labeled pairs (mean margin {self.margin:+.3f})"


class TeacherAgreement:
    """
    Agreement of teachers over the rows that were scored so far. The sums stay on the device of the margins.

    Args:
        groups (`Iterable[str]`, *optional*):
            Groups in the order of their ids; without any, all rows are counted together.
    """

    def __init__(self, groups: Iterable[str] = ()):
        self.groups: list[str | None] = list(groups) or [None]
        self.found: list[Agreement] = []
        """Of each group, as of the last [`reduce`]."""
        self._sums: torch.Tensor | None = None
        self._warned: set[str | None] = set()

    def ids(self, names: Iterable[str]) -> torch.Tensor:
        """Place of each row's group in `groups`, -1 for none."""
        places = {name: place for place, name in enumerate(self.groups)}
        return torch.tensor([places.get(name, -1) for name in names])

    @torch.no_grad()
    def add(self, margins: torch.Tensor, has_label: torch.Tensor | None = None, group_id: torch.Tensor | None = None) -> None:
        """Count rows, all of shape `(num_rows,)`: margins of the teachers of their groups, whether somebody has labeled them, and their
        places in `groups` (-1 for none)."""
        # Counts outgrow float32; the devices that lack float64 have to do with it.
        dtype = torch.float64 if margins.device.type in ("cpu", "cuda") else torch.float32
        margins = margins.to(dtype)
        label = torch.ones_like(margins) if has_label is None else has_label.to(margins)
        of_group = label[:, None]
        if self.groups != [None]:
            ids = torch.full_like(margins, -1) if group_id is None else group_id
            of_group = of_group * (ids[:, None] == torch.arange(len(self.groups), device=ids.device))
        sums = torch.stack([torch.ones_like(margins), (torch.sign(margins) + 1) / 2, margins]) @ of_group
        self._sums = sums if self._sums is None else self._sums + sums

    def reduce(self, gather: Callable[[torch.Tensor], torch.Tensor] | None = None) -> dict[str, float]:
        """Warn once of each group whose teacher prefers the rejected responses, and return what to log: `teacher_accuracy/{group}` and
        `teacher_margin/{group}`, or without `/{group}` where there are no groups; NaN for a group without labeled pairs.

        Where processes have counted different rows, `gather` takes a tensor of shape `(1, n)` and returns those of all processes.
        """
        if self._sums is None:
            return {}
        sums = self._sums.reshape(1, -1)
        counts, right, margins = (sums if gather is None else gather(sums)).double().sum(dim=0).reshape(3, -1).tolist()
        self.found = [
            Agreement(name, round(n), r / n if n else math.nan, m / n if n else math.nan)
            for name, n, r, m in zip(self.groups, counts, right, margins, strict=True)
        ]
        logs: dict[str, float] = {}
        for found in self.found:
            end = "" if found.group is None else f"/{found.group}"
            logs |= {f"teacher_accuracy{end}": found.share, f"teacher_margin{end}": found.margin}
            if found.share < 0.5 and found.group not in self._warned:
                self._warned.add(found.group)
                logger.warning(
                    f"{found}: what is distilled contradicts the labels. Likely causes: teachers assigned to the wrong "
                    "groups, margins of the opposite sign, or a teacher trained on texts that were rendered differently (as text "
                    "or as messages, with or without a history, with another template)."
                )
        return logs
