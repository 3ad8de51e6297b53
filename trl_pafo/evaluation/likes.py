"""What each group likes: words and styles of the chosen responses that tell groups apart. (Not from the paper.)

A *sign* is a word that just one response of a pair has, or a style (length, exclamation marks and so on) of which one has more. Candidates come from
training pairs: every style, and for each group the words whose log odds among the words of chosen against those of rejected responses lie farthest
from the other groups', by the z-score of Monroe, Colaresi and Quinn (2008), with all groups' words as the informative prior. As frequencies among words
are compared, a group that chooses the longer response does not like every word.

Candidates are checked on pairs of people who gave none: those of the test, or, where these are known from training, half of the people against the
other half. A group *likes* a sign if it chooses the response with the sign more often than not, and more often than the others do. Both are tested over
users, the first by random signs, the second by dealing out the groups anew, each with the largest statistic of all candidates of the group
(Westfall and Young, 1993), at 5 % over all groups. So in at most about one of twenty data sets without tastes any sign is named. A sign of fewer than 5
users of the group, in candidates or in the check, is not looked at.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trl_pafo.metrics.accuracy import FloatArray, IntArray

FEWEST_USERS = 5
MAX_PAIRS = 20_000
LEVEL = 0.05
_CANDIDATES, _SHOWN, _EXAMPLES = 40, 5, 2
_PRIOR = 1000.0  # words that the prior counts for
_RESAMPLES, _CHUNK = 1999, 500
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")

_COUNTS: dict[tuple[str, str], Callable[[str], int]] = {
    ("longer", "shorter"): lambda text: len(text.split()),
    ("with more exclamation marks", "with fewer exclamation marks"): lambda text: text.count("!"),
    ("with more question marks", "with fewer question marks"): lambda text: text.count("?"),
    ("with more digits", "with fewer digits"): lambda text: sum(map(str.isdigit, text)),
    ("with more lines", "with fewer lines"): lambda text: len(text.strip().splitlines()),
}
_STYLES = {name: (count, sign) for names, count in _COUNTS.items() for name, sign in zip(names, (1, -1), strict=True)}

SignArray = NDArray[np.int8]


class Pairs(NamedTuple):
    """Texts, user and group of each pair."""

    chosen: Sequence[str]
    rejected: Sequence[str]
    user: Sequence[str]
    group: Sequence[str]

    def of(self, rows: Sequence[int]) -> "Pairs":
        """Some of the pairs."""
        return Pairs(*([column[row] for row in rows] for column in self))


def find_likes(train: Pairs, test: Pairs, seed: int = 0) -> dict[str, Any]:
    """What each group likes, see the top of this module.

    Args:
        train, test ([`Pairs`]):
            Training pairs and test pairs; of each, those of users drawn at random are taken, at most 20,000 or one user's.
        seed (`int`, *optional*, defaults to `0`):
            Of the draw and of the tests.

    Returns:
        `dict`: `found_in` and `checked_on`, how many users; `tried`, how many candidates all groups had; and `groups`, from each group with users in
        both to `signs`, a list of `sign` (as in *the response ...*), `is_word`, and the numbers `pairs` (test pairs of the group of which just one
        response has the sign), `users` (whose they are), `chosen` (the one with the sign was chosen), `other_pairs` and `other_chosen` (of all other
        groups); and `examples`, rows of `test` with the most signs, one a user and prompt.
    """
    rng = np.random.default_rng(seed)
    both = sorted(set(train.user) & set(test.user))
    finders = set(rng.permutation(both)[::2].tolist())
    rows = _drawn(test.user, finders, rng)
    known, judged = train.of(_drawn(train.user, set(both) - finders, rng)), test.of(rows)
    groups = sorted(set(known.group) & set(judged.group))
    found: dict[str, Any] = {"found_in": len(set(known.user)), "checked_on": len(set(judged.user)), "tried": 0, "groups": {}}
    if len(groups) < 2:
        return found
    words = {group: _candidates(known, group) for group in groups}
    every = sorted({word for of_group in words.values() for word in of_group})
    signs = _signs(judged, every)
    for group in groups:
        columns = np.concatenate([np.arange(len(_STYLES)), len(_STYLES) + np.searchsorted(every, words[group])]).astype(np.int64)
        shown = _checked(columns, signs, judged, group, LEVEL / len(groups), rng)
        found["tried"] += len(columns)
        found["groups"][group] = {
            "signs": [_named(column, every) | counts for column, counts in shown[:_SHOWN]],
            "examples": [rows[row] for row in _examples([column for column, _ in shown], signs, judged, group)],
        }
    return found


def _drawn(user: Sequence[str], without: set[str], rng: np.random.Generator) -> list[int]:
    """Rows of users drawn at random, none of `without`, at most [`MAX_PAIRS`] or those of one user."""
    sizes = Counter(name for name in user if name not in without)
    order = rng.permutation(sorted(sizes)).tolist()
    fits = np.cumsum([sizes[name] for name in order]) <= MAX_PAIRS
    kept = {*order[:1], *(name for name, fit in zip(order, fits, strict=True) if fit)}
    return [row for row, name in enumerate(user) if name in kept]


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _signs(pairs: Pairs, words: Sequence[str]) -> SignArray:
    """1 where the chosen response of a pair has a sign, -1 where the rejected one, of shape `(num_pairs, num_styles + num_words)`."""
    found, place = (
        np.zeros((len(pairs.user), len(_STYLES) + len(words)), dtype=np.int8),
        {word: i for i, word in enumerate(words, len(_STYLES))},
    )
    for row, texts in zip(found, zip(pairs.chosen, pairs.rejected, strict=True), strict=True):
        row[: len(_STYLES)] = [sign * np.sign(amount(texts[0]) - amount(texts[1])) for amount, sign in _STYLES.values()]
        chosen, rejected = map(_words, texts)
        row[[place[word] for word in chosen - rejected if word in place]] = 1
        row[[place[word] for word in rejected - chosen if word in place]] = -1
    return found


def _named(column: int, words: Sequence[str]) -> dict[str, Any]:
    word = column - len(_STYLES)
    return {"sign": [*_STYLES][column] if word < 0 else f"with the word “{words[word]}”", "is_word": word >= 0}


def _candidates(pairs: Pairs, group: str) -> list[str]:
    """The words of a group that have the highest z-scores."""
    counts = {(mine, side): Counter[str]() for mine in (True, False) for side in ("chosen", "rejected")}
    users: dict[str, set[str]] = {}
    for chosen, rejected, user, owner in zip(*pairs, strict=True):
        for side, text in (("chosen", chosen), ("rejected", rejected)):
            counts[owner == group, side].update(_words(text))
        if owner == group:
            for word in _words(chosen) ^ _words(rejected):
                users.setdefault(word, set()).add(user)
    words = sorted(word for word, owners in users.items() if len(owners) >= FEWEST_USERS)
    scores = log_odds([counts[mine, side] for mine in (True, False) for side in ("chosen", "rejected")], words)
    best = np.argsort(-scores, kind="stable")[: _CANDIDATES if words else 0]
    return [words[i] for i in best if scores[i] > 0]


def log_odds(of_texts: Sequence[Mapping[str, int]], words: Sequence[str]) -> FloatArray:
    """Of each word the z-score of: log odds among chosen minus among rejected texts, in a group minus in the others, of shape `(num_words,)`.

    `of_texts` are counts of words in chosen and rejected texts of the group, and in chosen and rejected texts of the others.
    """
    counts = np.array([[of.get(word, 0) for word in words] for of in of_texts], dtype=np.float64)
    totals = np.array([[sum(of.values())] for of in of_texts], dtype=np.float64)
    prior = _PRIOR * counts.sum(axis=0) / max(totals.sum(), 1.0)
    own = counts + prior
    log = np.log(own) - np.log(totals + _PRIOR - own)
    return (log[0] - log[1] - log[2] + log[3]) / np.sqrt((1 / own).sum(axis=0))


def _checked(
    columns: IntArray, signs: SignArray, pairs: Pairs, group: str, level: float, rng: np.random.Generator
) -> list[tuple[int, dict[str, int]]]:
    """The columns of the signs that the group likes, with their counts, those that tell it apart most surely first."""
    users, code = np.unique(np.asarray(pairs.user), return_inverse=True)
    mine = np.zeros(len(users), dtype=bool)
    mine[code[np.asarray(pairs.group) == group]] = True
    chosen, judged = np.zeros((2, len(users), len(columns)))
    np.add.at(chosen, code, signs[:, columns] > 0)
    np.add.at(judged, code, signs[:, columns] != 0)
    known = ((judged[mine] > 0).sum(axis=0) >= FEWEST_USERS) & judged[~mine].any(axis=0)
    columns, chosen, judged = columns[known], chosen[:, known], judged[:, known]
    if not len(columns):
        return []
    more = 2 * chosen[mine] - judged[mine]
    beyond = chosen - judged * chosen.sum(axis=0) / judged.sum(axis=0)
    scaled = [values / np.maximum(np.sqrt((values**2).sum(axis=0)), 1e-12) for values in (more, beyond)]
    statistics = scaled[0].sum(axis=0), scaled[1][mine].sum(axis=0)
    highest: list[list[float]] = [[], []]
    for start in range(0, _RESAMPLES, _CHUNK):
        number = min(_CHUNK, _RESAMPLES - start)
        flips = rng.choice([-1.0, 1.0], (number, len(more)))
        dealt = rng.permuted(np.tile(mine.astype(np.float64), (number, 1)), axis=1)
        for of_all, drawn, values in zip(highest, (flips, dealt), scaled, strict=True):
            of_all += (drawn @ values).max(axis=1).tolist()
    least = [
        (1 + (np.array(of_all)[:, None] >= of_sign - 1e-9).sum(axis=0)) / (1 + _RESAMPLES)
        for of_all, of_sign in zip(highest, statistics, strict=True)
    ]
    liked = np.flatnonzero((least[0] <= level) & (least[1] <= level))
    found = []
    for i in liked[np.argsort(-statistics[1][liked], kind="stable")]:
        counts = {"pairs": judged[mine, i].sum(), "users": (judged[mine, i] > 0).sum(), "chosen": chosen[mine, i].sum()}
        counts |= {"other_pairs": judged[~mine, i].sum(), "other_chosen": chosen[~mine, i].sum()}
        found.append((int(columns[i]), {name: int(number) for name, number in counts.items()}))
    return found


def _examples(liked: Sequence[int], signs: SignArray, pairs: Pairs, group: str) -> list[int]:
    """Pairs of a group whose chosen response has the most of the signs that it likes; of equals, the shortest texts."""
    score = signs[:, liked].sum(axis=1)
    rows = [row for row, owner in enumerate(pairs.group) if owner == group and score[row] > 0]
    taken: list[int] = []
    seen: set[str] = set()
    for row in sorted(rows, key=lambda row: (-score[row], len(pairs.chosen[row]) + len(pairs.rejected[row]))):
        texts = {f"user {pairs.user[row]}", pairs.chosen[row], pairs.rejected[row]}
        if not seen & texts and len(taken) < _EXAMPLES:
            taken.append(row)
            seen |= texts
    return taken
