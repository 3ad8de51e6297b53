"""Whether teachers agree with the labels of their own groups: a teacher of another group, or of other texts, does not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from accelerate.logging import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class Agreement:
    """
    What a teacher says of the training pairs of its own group.

    `share` is that of the pairs on which its margin prefers the chosen response, a tie counting half; `margin` is the mean, in its
    own reward units.
    """

    group: str
    num_pairs: int
    share: float
    margin: float

    def __str__(self) -> str:
        of = f"{self.share:.1%} of its group's {self.num_pairs:,} labeled pairs"
        return f"The teacher of {self.group} prefers the chosen response in {of} (mean margin {self.margin:+.3f})"

    def logs(self) -> dict[str, float]:
        """`teacher_accuracy/{group}` and `teacher_margin/{group}`."""
        return {f"teacher_accuracy/{self.group}": self.share, f"teacher_margin/{self.group}": self.margin}


def agreement(margins: np.ndarray, group: Sequence[str]) -> list[Agreement]:
    """Agreement of the teacher of each group with the labels of its pairs; a warning where it prefers the rejected responses.

    `margins`, of shape `(num_pairs,)`, are of the teacher of each pair's group.
    """
    margins = margins.astype(np.float64)
    names = np.asarray(group)
    found = []
    for name in np.unique(names):
        own = margins[names == name]
        share = float(((np.sign(own) + 1) / 2).mean())
        found.append(Agreement(str(name), len(own), share, float(own.mean())))
    for each in found:
        if each.share < 0.5:
            logger.warning(
                f"{each}: what is distilled contradicts the labels. Likely causes: teachers assigned to the wrong groups, margins of the "
                "opposite sign, or a teacher that reads texts rendered differently (as text or as messages, with another template)."
            )
    return found
