"""Whether teachers agree with the labels of their own groups: a teacher of another group, or of other texts, does not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from accelerate.logging import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class Agreement:
    """
    What a teacher says of the training pairs of its own group; `None` stands for margins of rows without groups.

    `share` is that of the pairs on which its margin prefers the chosen response, a tie counting half; `margin` is the mean, in its
    own reward units.
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

    def logs(self) -> dict[str, float]:
        """`teacher_accuracy/{group}` and `teacher_margin/{group}`, or without `/{group}` where there are no groups."""
        end = "" if self.group is None else f"/{self.group}"
        return {f"teacher_accuracy{end}": self.share, f"teacher_margin{end}": self.margin}


def agreement(margins: np.ndarray, group: Sequence[str] | None = None) -> list[Agreement]:
    """Agreement of the teacher of each group with the labels of its pairs; a warning where it prefers the rejected responses.

    `margins`, of shape `(num_pairs,)`, are of the teacher of each pair's group. Without `group`, all pairs are counted together.
    """
    margins = margins.astype(np.float64)
    names = np.asarray(group) if group is not None else np.zeros(len(margins))
    found = []
    for name in np.unique(names):
        own = margins[names == name]
        share = float(((np.sign(own) + 1) / 2).mean())
        found.append(Agreement(None if group is None else str(name), len(own), share, float(own.mean())))
    for each in found:
        if each.share < 0.5:
            logger.warning(
                f"{each}: what is distilled contradicts the labels. Likely causes: teachers assigned to the wrong groups, margins of the "
                "opposite sign, or a teacher that reads texts rendered differently (as text or as messages, with another template)."
            )
    return found
