"""What is held out of the pairs of real people: new people on new prompts, new people on known prompts, or new pairs of known people."""

import logging
import random
from collections import defaultdict
from statistics import median

import numpy as np
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray

from trl_pafo.data.attaching import attach_history
from trl_pafo.data.overlap import telling_fields
from trl_pafo.data.sources.arguments import WAYS, DataArguments
from trl_pafo.data.sources.splits import (
    are_new,
    facts_of,
    note,
    one_value_per_user,
    rows_by_user,
    split_users,
    texts_of,
    users_in_order,
    without,
)
from trl_pafo.errors import DataError

logger = logging.getLogger(__name__)

TEST_SHARE = 0.2
"""Share of the people, or of each person's prompts, that is for test."""
FEWEST_USERS = 6
"""With fewer test users there is no 95 % interval over users (`trl_pafo.metrics.intervals`)."""
FEWEST_PROMPTS = 4
"""Of so many prompts a person can spare one and keep a history of some."""


def hold_out(pairs: Dataset, given: Dataset | None, timed: bool, data: DataArguments) -> DatasetDict:
    """Pairs as `train` and `test`, held out as the data allow or as `data.hold_out` asks; the log says how, and why.

    - `"users_and_prompts"`: a fifth of the people is for test, without their pairs on prompts that occur in training. If fewer than
      half of their pairs are left, `data.test_prompt_share` of all prompts is held out of training, and their history is
      `data.context_pairs` of their other pairs.
    - `"users"`: the same people on all their prompts.
    - `"pairs"`: a fifth of each person's prompts (the newest where pairs are `timed`, else drawn), with the newest
      `data.context_pairs` of the others as history. The column `unit` names what was held out by itself, all pairs of a person on a
      prompt. People with fewer than three prompts are in training alone.

    Unless told, it is the second where the prompts are shared, the first where they are not, and the third where a fifth of the
    people are too few for an interval over people. Where all pairs have one prompt, responses take the place of prompts. Test pairs
    that are `given` are taken, without those that the way of holding out forbids.

    Raises:
        DataError: If nobody is left in training or test, or given test pairs are of people of whom some are in training.
    """
    how, share, seed = data.hold_out, data.test_prompt_share, data.population_seed
    num_context, missing = data.context_pairs or 1, "keep" if data.min_pairs == 1 else "drop"
    fields, pool, reason = telling_fields(*(rows for rows in (pairs, given) if rows is not None)), None, "as asked for"
    if given is not None:
        how, reason = _way_of_given(pairs, given, how, fields)
        train, test = (rows_by_user(rows, users_in_order(rows)) for rows in (pairs, given))
        if how == "users_and_prompts":
            test = without(test, are_new(train, test, fields), "whose prompts occur in training")
    else:
        if how is None and (too_few := _why_known_people(pairs, fields)):
            how, reason = "pairs", too_few
        train, test = _people(pairs, seed) if how != "pairs" else (pairs, pairs)
        if how in (None, "users_and_prompts"):
            new = are_new(train, test, fields)
            if how is None:
                how, reason = _way_of_new_people(new)
        if how == "users_and_prompts":
            if 2 * new.sum() >= len(test):
                test = without(test, new, "whose prompts occur in training")
            else:
                train, test, pool = _on_new_prompts(train, test, fields, share, seed)
    if how == "pairs":
        train, test = _pairs_of_known(train, test, given is None, fields, timed, seed)
        pool = train
    if pool is not None and "history" not in test.column_names:
        test = attach_history(test, num_context, pool=pool, missing=missing)
    people, known = set(test["user"][:]), set(train["user"][:])
    logger.info(
        "Held out: %s (--hold_out %s), %s. Test: %d pairs of %d people; training: %d pairs of %d people%s.",
        *(WAYS[how], how, reason, len(test), len(people), len(train), len(known)),
        ", the same" if people == known else "",
    )
    return DatasetDict(train=note(train, hold_out=how), test=note(test, hold_out=how))


def add_validation(splits: DatasetDict, validation: Dataset, data: DataArguments, what: str) -> None:
    """Add given pairs as `validation`: of new people, or, as `trl-pafo prepare` holds them out, of training people on other prompts.

    Where they could not decide between trainings, it is said why, and pairs are held out as without them.
    """
    if reason := _why_no_validation(splits, validation, data):
        logger.warning("%s: the split validation is not used, as %s.", what, reason)
        return
    if "unit" in splits["train"].column_names:
        validation = _with_units(validation, telling_fields(splits["train"], validation), {}, "held-out prompt")
    splits["validation"] = validation
    people, known = set(validation["user"][:]), set(splits["train"]["user"][:])
    whose = "training people, on other prompts" if people <= known else "new people"
    logger.info("Validation: the %d pairs of %d people of the split validation, %s.", len(validation), len(people), whose)


def _why_no_validation(splits: DatasetDict, validation: Dataset, data: DataArguments) -> str | None:
    train, test = splits["train"], splits["test"]
    if different := sorted({"group", "support_rate", "history"} & (set(train.column_names) ^ set(validation.column_names))):
        return f"only one of it and training has the column {different[0]}"
    if not data.infer_groups:
        if "group" not in train.column_names:
            return "the data name no groups, which would have to be found anew for it"
        if unknown := sorted(set(validation.unique("group")) - set(train.unique("group"))):
            return f"training has no group {unknown[0]!r}"
    people, known, tested = (set(rows["user"][:]) for rows in (validation, train, test))
    fields, how = telling_fields(train, validation), facts_of(train)["hold_out"]
    if people & known:
        if people - known:
            return f"{len(people & known)} of its {len(people)} people are in training, and the others are not"
        if "history" not in train.column_names:
            return "its people are in training, and it has no column history"
        old = ~are_new(train.remove_columns("history"), validation, fields)  # a training row may show it as past, as of `prepare`
    else:
        if people & tested:
            return f"{len(people & tested)} of its {len(people)} people are test people"
        old = ~are_new(train, validation, fields) if how == "users_and_prompts" else np.zeros(len(validation), dtype=bool)
    if old.any():
        return f"{old.sum()} of its {len(old)} pairs are on prompts of training"
    judged = set(zip(test["user"][:], texts_of(test, fields), strict=True))
    if not judged.isdisjoint(zip(validation["user"][:], texts_of(validation, fields), strict=True)):
        return "it has pairs of the test data"
    return None


def _why_known_people(pairs: Dataset, fields: tuple[str, ...]) -> str | None:
    """Why new pairs of known people are held out, where new people are too few."""
    prompts: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    for user, texts in zip(pairs["user"][:], texts_of(pairs, fields), strict=True):
        prompts[user].add(texts)
    number = round(TEST_SHARE * len(prompts))
    if number < FEWEST_USERS and median(map(len, prompts.values())) >= FEWEST_PROMPTS:
        return f"since a fifth of {len(prompts)} people are {number}, of whom nothing could be shown ({FEWEST_USERS} at least)"
    return None


def _way_of_new_people(are_new: NDArray[np.bool_]) -> tuple[str, str]:
    """The way that the prompts of the test people allow, and why."""
    new, number = int(are_new.sum()), len(are_new)
    if 2 * new >= number:
        return "users_and_prompts", f"since {new} of {number} pairs of test people are on prompts that nobody in training judged"
    return (
        "users",
        f"since people share their prompts: {number - new} of {number} pairs of test people are on prompts of training",
    )


def _way_of_given(pairs: Dataset, given: Dataset, how: str | None, fields: tuple[str, ...]) -> tuple[str, str]:
    people = set(given["user"][:])
    shared = sorted(people & set(pairs["user"][:]))
    if how == "pairs" or (how is None and len(shared) == len(people)):
        return "pairs", "as asked for" if how else "since all people of the test data are in the training data"
    if shared:
        raise DataError(
            f"{len(shared)} of {len(people)} users of the test data are in the training data too (the first: {shared[0]!r}). Leave them out "
            "of one of the two, join the two into one file and let test pairs be drawn, or test on these people alone: --hold_out pairs."
        )
    if how:
        return how, "as asked for"
    new = int(are_new(pairs, given, fields).sum())
    return "users_and_prompts" if 2 * new >= len(given) else "users", f"since {new} of {len(given)} test pairs are on new prompts"


def _people(pairs: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """The pairs of training people and of test people."""
    users = users_in_order(pairs)
    group_of = one_value_per_user(pairs, "group") if "group" in pairs.column_names else dict.fromkeys(users)
    drawn = set(split_users(group_of, TEST_SHARE, seed)[1])
    train, test = ([user for user in users if (user in drawn) == is_test] for is_test in (False, True))
    return rows_by_user(pairs, train), rows_by_user(pairs, test)


def _on_new_prompts(
    train: Dataset, test: Dataset, fields: tuple[str, ...], share: float, seed: int
) -> tuple[Dataset, Dataset, Dataset]:
    """Training pairs and test pairs on different prompts, and the other pairs of the test people, which are their past."""
    texts = [texts_of(rows, fields) for rows in (train, test)]
    prompts = sorted({text for rows in texts for row in rows for text in row})
    out = set(random.Random(seed).sample(prompts, max(1, round(share * len(prompts)))))
    trained, past = (np.array([out.isdisjoint(row) for row in rows], dtype=bool) for rows in texts)
    tested = np.array([out.issuperset(row) for row in texts[1]], dtype=bool)
    if not (trained.any() and tested.any()):
        raise DataError(
            f"With {len(out)} of {len(prompts)} prompts held out, training or test has no pairs. Move test_prompt_share ({share}), or choose "
            "--hold_out users."
        )
    logger.info(
        "%d of %d prompts are for test. Without them, training has %d of %d pairs.",
        len(out),
        len(prompts),
        trained.sum(),
        len(train),
    )
    return train.select(np.flatnonzero(trained)), test.select(np.flatnonzero(tested)), test.select(np.flatnonzero(past))


def _pairs_of_known(
    train: Dataset, test: Dataset, draw: bool, fields: tuple[str, ...], timed: bool, seed: int
) -> tuple[Dataset, Dataset]:
    """Training pairs, and pairs of the same people on other prompts of each, both with the column `unit`."""
    texts = texts_of(train, fields)
    prompts_of: defaultdict[str, dict[tuple[str, ...], None]] = defaultdict(dict)
    for user, own in zip(train["user"][:], texts, strict=True):
        prompts_of[user].pop(own, None)  # in the order in which they were judged last
        prompts_of[user][own] = None
    if draw:
        held_out = set()
        for user, judged in prompts_of.items():
            prompts = list(judged)
            if not timed:
                random.Random(f"{seed} {user}").shuffle(prompts)
            number = max(1, round(TEST_SHARE * len(prompts))) if len(prompts) > 2 else 0
            held_out |= {(user, own) for own in prompts[len(prompts) - number :]}
        if not held_out:
            raise DataError("Nobody judged three prompts, so no pairs of known people can be held out. Choose --hold_out users.")
        is_test = np.array([(user, own) in held_out for user, own in zip(train["user"][:], texts, strict=True)], dtype=bool)
        train, test = train.select(np.flatnonzero(~is_test)), train.select(np.flatnonzero(is_test))
    else:
        test = without(
            test, np.array([user in prompts_of for user in test["user"]], dtype=bool), "whose people have no training pairs"
        )
        new = (own not in prompts_of[user] for user, own in zip(test["user"][:], texts_of(test, fields), strict=True))
        test = without(test, np.array(list(new), dtype=bool), "whose prompts the same people judged in training")
    train, test = (rows_by_user(rows, users_in_order(rows)) for rows in (train, test))
    number_of: dict[tuple[str, tuple[str, ...]], int] = {}
    return _with_units(train, fields, number_of), _with_units(test, fields, number_of)


def _with_units(
    rows: Dataset, fields: tuple[str, ...], number_of: dict[tuple[str, tuple[str, ...]], int], what: str = "prompt"
) -> Dataset:
    """Rows with the column `unit`, which names the user and the prompt by its number, known or new."""
    units = zip(rows["user"][:], texts_of(rows, fields), strict=True)
    names = [f"{user}, {what} {number_of.setdefault((user, own), len(number_of))}" for user, own in units]
    return rows.add_column("unit", names)  # type: ignore[arg-type]
