"""The mixture of teachers: all of them score a pair, and the user's history decides how much each counts. (Not from the paper.)

It needs no group label at inference, and all teachers. As students can come near to it, it shows what they can reach.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike

from trl_pafo.data.group_mixture import GroupMixture
from trl_pafo.data.history import history_of, past_pairs, rows_as_messages, without_history
from trl_pafo.data.named_groups import remember_groups
from trl_pafo.data.overlap import PairNumbers, telling_fields
from trl_pafo.data.rows import read_rows
from trl_pafo.errors import DataError
from trl_pafo.evaluation.rewards import ScoredPairs, score_mean
from trl_pafo.metrics.accuracy import FloatArray
from trl_pafo.models.group_scorer import GroupScorer
from trl_pafo.models.ranks import on_first

DRAWS = 8
"""Histories of each held-out pair."""


def score_alone(teachers: Mapping[str, str | Sequence[str]], rows: Dataset, **scoring: Any) -> list[ScoredPairs]:
    """Pairs without their histories under each teacher, in the order of the groups' names.

    A group has the folder of its teacher, or those of its folds, whose mean counts. The rest is that of
    [`~trl_pafo.evaluation.rewards.score_rows`].
    """
    alone = without_history(rows)
    desc = scoring.pop("desc", None)
    return [
        score_mean(folders, alone, desc=desc and f"{desc}, {group}", **scoring) for group, folders in sorted(teachers.items())
    ]


def margins_of(scored: Sequence[ScoredPairs]) -> FloatArray:
    """Margins of several teachers, of shape `(num_pairs, num_teachers)`."""
    return np.stack([np.subtract(pairs.chosen, pairs.rejected, dtype=np.float64) for pairs in scored], axis=1)


def score_mixture(
    front: Mapping[str, Any], teachers: Mapping[str, str | Sequence[str]], rows: Dataset, **scoring: Any
) -> ScoredPairs:
    """Score each row under all teachers, weighed by its history, which needs no label of the group.

    The chosen response has the margin as its reward, the rejected one 0: a mixture has no reward of a response alone. `front` has the
    mixture as JSON, `fitted`, and its `tau`. Rows are those of `trl-pafo prepare`: beside what is read, with the complete `history`,
    of which those past pairs count that are read. The other arguments are those of [`score_alone`].
    """
    scored, past_margins, past = score_with_past(teachers, rows, **scoring)
    mixture = GroupMixture.from_json(front["fitted"], "`fitted` of the front")
    margins = mixture.margins(margins_of(scored), past_margins, past, front["tau"])
    return ScoredPairs(margins, np.zeros_like(margins))


def score_with_past(
    models: Mapping[str, str | Sequence[str]], rows: Dataset, **scoring: Any
) -> tuple[list[ScoredPairs], FloatArray, list[list[int]]]:
    """Prepared rows and the past pairs that they show under each of several models, all without a history.

    Returns what [`score_alone`] gives of the rows; margins of the different past pairs, of shape `(num_past_pairs, num_models)`; and
    for each row the numbers of its own among them.
    """
    scored = score_alone(models, rows, **scoring)
    entries, past = past_pairs_alone(rows)
    past = [own[:number] for own, number in zip(past, num_shown(rows), strict=True)]
    past_margins = np.zeros((0, len(scored)))
    if len(entries):
        past_margins = margins_of(score_alone(models, entries, **scoring))
    return scored, past_margins, past


def fit_groups(
    folder: str | Path,
    held_out: Dataset,
    seed: int = 0,
    choose_tau: Callable[[GroupMixture, FloatArray, list[list[int]]], float] | None = None,
    **scoring: Any,
) -> GroupMixture:
    """How the answers of a saved model for all groups become one reward, fitted to pairs that it was not trained on, and written into
    its folder.

    Args:
        folder (`str` or `Path`):
            A model that was trained with `conditioning="named"`.
        held_out ([`~datasets.Dataset`]):
            Prepared pairs of users and prompts of their own, of all groups; histories are drawn from them ([`held_out_histories`]).
        seed (`int`, *optional*, defaults to `0`):
            Seed of these draws.
        choose_tau (`Callable`, *optional*):
            From what was fitted, the margins under each group of shape `(num_pairs, num_groups)`, and the histories, the prior, in place of
            the one that the model remembers ([`~trl_pafo.models.group_scorer.GroupScorer`]).
        scoring:
            Options of [`~trl_pafo.evaluation.rewards.score_rows`].

    Raises:
        DataError: If the pairs are of groups that the model does not know.
    """
    scorer = GroupScorer(folder, bf16=scoring.get("bf16", False))
    if unknown := sorted(set(held_out["group"]) - set(scorer.mixture.groups)):
        raise DataError(
            f"{folder} was not trained with the groups {', '.join(unknown)} of the held-out pairs. Leave these pairs out."
        )
    rows = [{**row, "history": []} for row in read_rows(held_out)]
    how = {"batch_size": 2 * scoring.get("batch_size", 32), "processes": scoring.get("processes"), "desc": scoring.get("desc")}
    found = scorer.read_tokens(scorer.tokenize(rows, allow_no_history=True), **how)
    margins = np.array([own["chosen"] - own["rejected"] for own, _ in map(scorer.by_group, found)])
    shares = dict(zip(scorer.mixture.groups, scorer.mixture.share.tolist(), strict=True))
    past = held_out_histories(held_out, seed)
    mixture = GroupMixture.fit(shares, margins, held_out["group"][:], margins, past)
    remember_groups(scorer.tokenizer, mixture.as_json(), choose_tau(mixture, margins, past) if choose_tau else scorer.tau)
    on_first(lambda: scorer.tokenizer.save_pretrained(str(folder)))
    return mixture


def held_out_histories(rows: Dataset, seed: int) -> list[list[int]]:
    """[`draw_histories`] for held-out pairs, as long as those of the rows, [`DRAWS`] times."""
    fields = telling_fields(rows)
    texts = [*map(PairNumbers(fields), read_rows(rows, fields))]
    return draw_histories(rows["user"][:], rows["group"][:], texts, num_shown(rows), DRAWS, seed)


def past_pairs_alone(rows: Dataset) -> tuple[Dataset, list[list[int]]]:
    """[`~trl_pafo.data.history.past_pairs`] as rows that are rendered without a history."""
    entries, past = past_pairs(rows)
    if len(entries):
        entries = rows_as_messages(entries).add_column("chat_template_kwargs", [{"history": []}] * len(entries))  # type: ignore[arg-type]
    return entries, past


def num_shown(rows: Dataset) -> list[int]:
    """How many past pairs each of prepared rows shows."""
    return [len(history_of({"chat_template_kwargs": kwargs}) or []) for kwargs in rows["chat_template_kwargs"][:]]


def draw_histories(
    user: Sequence[Any], group: Sequence[Any], texts: ArrayLike, num_past: Sequence[int], num_draws: int, seed: int
) -> list[list[int]]:
    """Histories for pairs, made of these pairs: first the user's own that share no text with the pair, then such of others of the
    group.

    What a teacher was trained on it explains too well, so a history of training pairs would betray its group as no new user's does.
    That others of the group stand in takes a group to be of one taste.

    `texts` are numbers of the texts that no pair of a history may have ([`~trl_pafo.data.overlap.PairNumbers`]). Each history has
    `num_past` pairs, or fewer where there are no more. Those of all pairs in the first draw come first, then those in the second,
    and so on.
    """
    rng = np.random.default_rng(seed)
    of_user, of_group = (np.unique(np.asarray(names), return_inverse=True)[1] for names in (user, group))
    texts = np.asarray(texts)
    past: list[list[list[int]]] = [[] for _ in range(num_draws)]
    for pair, number in enumerate(num_past):
        overlaps = (texts[:, :, None] == texts[pair]).any(axis=(1, 2))
        others = np.flatnonzero((of_group == of_group[pair]) & ~overlaps)
        for histories in past:
            mixed = rng.permutation(others)
            histories.append(mixed[np.argsort(of_user[mixed] != of_user[pair], kind="stable")][:number].tolist())
    return [history for histories in past for history in histories]
