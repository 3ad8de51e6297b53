"""Who preferred what on which pair, as integers: the form in which people's labels are compared."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trl_pafo.data.labels import normalize_labels
from trl_pafo.data.messages import content_key
from trl_pafo.errors import DataError

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Votes:
    """
    Labels of users on pairs whose two responses have one fixed order.

    Attributes:
        users (`list[str]`):
            The users, sorted.
        user (`numpy.ndarray` of shape `(num_votes,)`):
            Place of each vote's user in `users`.
        pair (`numpy.ndarray` of shape `(num_votes,)`):
            Number of each vote's pair.
        label (`numpy.ndarray` of shape `(num_votes,)`):
            0 if the first response of the pair was preferred, 1 if the second was.
        num_pairs (`int`):
            Number of pairs.
    """

    users: list[str]
    user: IntArray
    pair: IntArray
    label: IntArray
    num_pairs: int


def votes_of(rows: Iterable[dict[str, Any]]) -> Votes:
    """Votes of rows with `prompt`, `chosen`, `rejected` and `user`: pairs are the same if prompt and both responses are.

    Raises:
        DataError: If there is no row, or one has no user.
    """
    numbers: dict[tuple[str, str, str], int] = {}
    names: list[object] = []
    pairs: list[int] = []
    labels: list[int] = []
    for row in rows:
        chosen, rejected = content_key(row["chosen"]), content_key(row["rejected"])
        key = (content_key(row["prompt"]), min(chosen, rejected), max(chosen, rejected))
        names.append(row["user"])
        pairs.append(numbers.setdefault(key, len(numbers)))
        labels.append(int(chosen > rejected))
    if not names:
        raise DataError("There is no vote to compare: the data holds no pairs.")
    users, codes = np.unique(normalize_labels(names, "user", "The votes"), return_inverse=True)
    return Votes(users.tolist(), codes.astype(np.int64), np.array(pairs), np.array(labels), len(numbers))


def others_votes(votes: Votes, counted: NDArray[np.bool_] | None = None) -> tuple[IntArray, IntArray]:
    """How many labels of *other* users on the pair of each vote are the same as its label, and how many there are in all.

    Whoever labels a pair more than once is left out of the others with all of these labels.

    Args:
        votes ([`Votes`]):
            The votes.
        counted (`numpy.ndarray` of shape `(num_votes,)`, *optional*):
            Which votes count as others'; all by default.

    Returns:
        Two integer arrays of shape `(num_votes,)`.
    """
    chosen = np.ones(len(votes.user), dtype=bool) if counted is None else counted
    on_pair = np.zeros((votes.num_pairs, 2), dtype=np.int64)
    np.add.at(on_pair, (votes.pair[chosen], votes.label[chosen]), 1)
    _, own = np.unique(votes.user * votes.num_pairs + votes.pair, return_inverse=True)
    by_owner = np.zeros((own.max() + 1, 2), dtype=np.int64)
    np.add.at(by_owner, (own[chosen], votes.label[chosen]), 1)
    others = on_pair[votes.pair] - by_owner[own]
    return others[np.arange(len(own)), votes.label], others.sum(axis=1)
