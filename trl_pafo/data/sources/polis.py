"""Polis: people agree or disagree with the statements of others in one conversation, and fall into groups of opinion.

Source of the data: the export that the report page of every conversation held with Polis (compdemocracy.org/polis) offers; the "open
data" ones are CC BY 4.0 with attribution to The Computational Democracy Project. Nothing of it is shipped. That a statement somebody
agreed with is preferred to one the same person disagreed with is our reading: nobody compared the two. The groups are clusters of
votes, found as Polis does (Small et al., 2021, "Polis: Scaling deliberation by mapping high dimensional opinion spaces"): k-means on
two principal components, with missing votes at the mean.
"""

import logging
import random
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2, vq

from trl_pafo.data.attaching import attach_history
from trl_pafo.data.checks import check_columns
from trl_pafo.data.groups import FloatArray
from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.reading import file_in, read_records, text_of
from trl_pafo.data.sources.splits import add_type_support, draw_people, note
from trl_pafo.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

MIN_PEOPLE = 20
"""Fewer people who can be judged are no population: six of these are for test."""

_FILES = "comments.csv and participants-votes.csv"
_VOTES = {"1": 1.0, "0": 0.0, "-1": -1.0, "": np.nan}
_STARTS = 20


class Conversation(NamedTuple):
    """
    The votes of one conversation: different texts that no moderator rejected, names of the participants, and their votes, of shape
    `(num_people, num_statements)`: 1 for agreement, -1 for disagreement, 0 for a pass, NaN where the person did not vote.
    """

    statements: list[str]
    people: list[str]
    votes: FloatArray


def load(data: DataArguments) -> DatasetDict:
    """Pairs of a statement that a person agreed with and one that the person disagreed with; the prompt is the conversation's
    topic.

    A statement is in one pair of a person at most, so that no history, which is made of other pairs of the person, holds a
    statement of the judged pair. The groups are clusters of the training people's votes, the largest is "majority". Votes on which
    somebody is evaluated, those of the test and of the validation pairs, play no part in anybody's group. The support rate is the
    group's share of the training people. The export does not tell the order of a person's votes, so it is drawn. People with too
    few statements of either kind are left out, and the log says how many.

    With `hold_out="users_and_prompts"`, test people judge statements (`test_prompt_share` of all) that are in no training pair and
    no history, validation people others (`validation_share` of the rest); with `"users"`, the default, both judge those of
    training. A person has at most `pairs_per_user` pairs, beside `context_pairs`, which make the history of a test or validation
    person.

    Raises:
        ConfigError: If there are fewer people than asked for, `test_prompt_share` is given where all statements are known, or pairs
            of known people are asked for.
        DataError: If a file is missing or cannot be used (the message names the line), too few people both agreed and disagreed, or
            their votes do not fall into as many clusters.
    """
    new_statements = data.hold_out == "users_and_prompts"
    if data.hold_out == "pairs":
        raise ConfigError(
            "--hold_out pairs: the votes of a person have no order and hang together. Choose users or users_and_prompts."
        )
    if not new_statements and data.test_prompt_share != DataArguments.test_prompt_share:
        raise ConfigError(
            "`test_prompt_share` has no effect where test people judge known statements. Set --hold_out users_and_prompts, or leave it out."
        )
    folder = Path(str(data.data_path))
    talk = read_conversation(folder)
    judged_by = _judged_statements(len(talk.statements), data)
    known = judged_by["train"]
    num_context = data.num_pairs - data.pairs_per_user
    least = max(1, num_context) + 1
    pairs = {}
    for person, votes in zip(talk.people, talk.votes, strict=True):
        rng = random.Random(f"{data.population_seed} {person}")
        past = _pairs_of(votes, known, rng)[: data.num_pairs]
        # Known statements: a part of the same pairs, so that none is in its own history.
        judged = {split: past if own is known else _pairs_of(votes, own, rng) for split, own in judged_by.items()}
        if len(past) >= least:
            pairs[person] = judged
    if len(pairs) < MIN_PEOPLE:
        raise DataError(
            f"{folder}: only {len(pairs)} of {len(talk.people)} people agreed with {least} statements and disagreed with as many; "
            f"it takes {MIN_PEOPLE}. Lower `context_pairs` (or `num_history`), or give a conversation with more votes."
        )
    if len(pairs) < len(talk.people):
        left_out = len(talk.people) - len(pairs)
        logger.info("%d of %d people are left out, who agreed or disagreed too rarely.", left_out, len(talk.people))

    prompt = data.topic or readable_topic(folder)

    def rows_of(pairs: list[tuple[int, int]]) -> list[dict[str, Any]]:
        return [
            {"prompt": prompt, "chosen": talk.statements[liked], "rejected": talk.statements[other]} for liked, other in pairs
        ]

    people = draw_people(dict.fromkeys(pairs), data)
    for split, members in people.items():
        people[split] = [person for person in members if pairs[person][split]]
        if len(people[split]) < len(members):
            logger.info(
                "%s: %d of %d people have no pair of new statements.", split, len(members) - len(people[split]), len(members)
            )
        if not people[split]:
            raise DataError(
                f"{folder}: nobody of {split} agreed with a new statement and disagreed with one. Choose --hold_out users."
            )
    votes = talk.votes.copy()
    row_of = {person: row for row, person in enumerate(talk.people)}
    splits = DatasetDict()
    for split, members in people.items():
        rows = []
        for person in members:
            own, past = pairs[person][split], pairs[person]["train"]
            if split != "train":
                own = own[num_context:] if own is past else own[: data.pairs_per_user]
                votes[row_of[person], [statement for pair in own for statement in pair]] = np.nan
            history = {} if split == "train" else {"history": rows_of(past[:num_context][::-1])}
            rows += [row | {"user": person} | history for row in rows_of(own)]
        splits[split] = Dataset.from_list(rows)
    splits["train"] = attach_history(splits["train"], num_context, past_only=False)

    everybody = [*people["train"], *people.get("validation", ()), *people["test"]]
    known_votes = votes[np.ix_([row_of[person] for person in everybody], known)]
    clusters = vote_clusters(known_votes, len(people["train"]), data.num_clusters, data.population_seed)
    names = ["majority", "minority", *(f"minority_{number}" for number in range(2, data.num_clusters))]
    group_of = {person: names[cluster] for person, cluster in zip(everybody, clusters, strict=True)}
    grouped = {
        split: part.add_column("group", [group_of[person] for person in part["user"][:]]) for split, part in splits.items()
    }
    marked = {split: note(part, hold_out=data.hold_out or "users") for split, part in grouped.items()}
    return add_type_support(DatasetDict(marked))


def _judged_statements(number: int, data: DataArguments) -> dict[str, list[int]]:
    """Places of the statements that the people of each split judge: those of training for all, unless new ones are asked for."""
    drawn = random.Random(data.population_seed).sample(range(number), number)
    num_test = round(data.test_prompt_share * number) if data.hold_out == "users_and_prompts" else 0
    num_validation = round(data.validation_share * (number - num_test)) if num_test else 0
    known = sorted(drawn[num_test + num_validation :])
    return {"train": known, "validation": drawn[num_test:][:num_validation] or known, "test": drawn[:num_test] or known}


def _pairs_of(votes: FloatArray, statements: Iterable[int], rng: random.Random) -> list[tuple[int, int]]:
    """Statements that a person agreed with beside those that the person disagreed with, each at most once, in a drawn order."""
    liked, other = ([number for number in statements if votes[number] == vote] for vote in (1, -1))
    rng.shuffle(liked)
    rng.shuffle(other)
    return list(zip(liked, other, strict=False))


def read_conversation(folder: Path) -> Conversation:
    """The export in a folder: statements that were not rejected (`moderated` is -1 for those that were), each text once, and votes.

    Raises:
        DataError: If a file is missing or cannot be used; the message names the line.
    """
    comments = file_in(folder, "comments.csv", _FILES)
    text_by_id: dict[str, str] = {}
    rejected: set[str] = set()
    for place, record in read_records(comments):
        check_columns(record, ["comment-id", "moderated", "comment-body"], str(comments))
        number = text_of(record, "comment-id", place)
        if number in text_by_id or number in rejected:
            raise DataError(f"{place}: the comment {number} is there twice. Leave one out.")
        if record["moderated"] == "-1":
            rejected.add(number)
        else:
            text_by_id[number] = text_of(record, "comment-body", place).strip()
    file = file_in(folder, "participants-votes.csv", _FILES)
    people: list[str] = []
    votes: list[list[float]] = []
    columns: list[str] = []
    for place, record in read_records(file):
        if not columns:
            check_columns(record, ["participant"], str(file))
            ids = [name for name in record if name.isdigit()]
            if strangers := [name for name in ids if name not in text_by_id and name not in rejected]:
                raise DataError(
                    f"{file} has votes on the comment {strangers[0]}, which {comments.name} lacks. Give one export's files."
                )
            columns = [name for name in ids if name in text_by_id]
            if not columns:
                raise DataError(f"{file} has no column of a comment that was not rejected: one is needed for each comment-id.")
        people.append(f"polis-{text_of(record, 'participant', place)}")
        if bad := [name for name in columns if record[name] not in _VOTES]:
            raise DataError(f"{place}: the vote on {bad[0]} must be 1, 0, -1 or empty, got {record[bad[0]]!r}.")
        votes.append([_VOTES[record[name]] for name in columns])
    if len(set(people)) < len(people):
        raise DataError(f"{file} has a participant twice. Leave one of the rows out.")
    first = {text_by_id[name]: place for place, name in reversed(list(enumerate(columns)))}
    if len(first) < len(columns):
        logger.warning("%d statements are left out, whose texts are those of earlier ones.", len(columns) - len(first))
    kept = sorted(first.values())
    return Conversation(
        [text_by_id[columns[place]] for place in kept], people, np.array(votes).reshape(-1, len(columns))[:, kept]
    )


def readable_topic(folder: Path) -> str:
    """The topic in the name of a folder, without the number of the report and the date: `city.new-parks.2rum9cbeh.2021-08-01`.

    ```python
    >>> from pathlib import Path
    >>> readable_topic(Path("city.new-parks.2rum9cbeh.2021-08-01"))
    'City new parks'
    ```
    """
    first, *others = folder.resolve().name.split(".")
    parts = [first, *(part for part in others if not any(map(str.isdigit, part)))]
    return " ".join(" ".join(parts).replace("-", " ").replace("_", " ").split()).capitalize()


def vote_clusters(votes: FloatArray, num_train: int, num_clusters: int, seed: int) -> NDArray[np.int64]:
    """Clusters of people by their votes; the people after the first `num_train` decide nothing, they join the nearest one.

    As Polis does: missing votes are filled with the statement's mean, the people are projected on the principal components, two, or
    one fewer than clusters where that is more, and those with few votes, whom the filling draws to the middle, are moved out by the
    square root of (statements / votes). Then k-means, the best of 20 starts. The cluster 0 is the one with the most of the first
    `num_train` people.

    Raises:
        DataError: If the votes do not fall into so many clusters.
    """
    seen = ~np.isnan(votes)
    filled = np.nan_to_num(votes)
    mean = filled[:num_train].sum(axis=0) / np.maximum(seen[:num_train].sum(axis=0), 1)
    centered = np.where(seen, filled - mean, 0.0)
    components = np.linalg.svd(centered[:num_train], full_matrices=False)[2][: max(2, num_clusters - 1)]
    points = centered @ components.T * np.sqrt(votes.shape[1] / np.maximum(seen.sum(axis=1), 1))[:, None]
    if len(np.unique(points[:num_train].round(9), axis=0)) < num_clusters:
        raise DataError(
            f"The votes of {num_train} training people do not fall into {num_clusters} clusters. Lower `num_clusters`."
        )
    rng = np.random.default_rng(seed)
    deciding = points[:num_train]
    starts = [rng.choice(np.unique(deciding, axis=0), num_clusters, replace=False) for _ in range(_STARTS)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a start lost a cluster: it is chosen only where all have
        found = [kmeans2(deciding, start, 100, minit="matrix")[0] for start in starts]

    def cost(centers: FloatArray) -> tuple[int, float]:
        labels, distances = vq(deciding, centers)
        return -len(np.unique(labels)), float((distances**2).sum())

    nearest = vq(points, min(found, key=cost))[0]
    sizes = np.bincount(nearest[:num_train], minlength=num_clusters)
    return np.argsort(np.argsort(-sizes, kind="stable"))[nearest]
