"""UKPConvArg1: real people say which of two arguments for the same side of a debate is more convincing.

Source of the data: Habernal and Gurevych (ACL 2016), "Which argument is more convincing?", CC BY 4.0. Nothing of it is
shipped. Each pair was judged by several people, so that the support of a person's taste is measured, not made. The
division into groups is ours.
"""

import random
from pathlib import Path

from datasets import Dataset, DatasetDict

from trl_pafo.data.checks import check_columns
from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.reading import file_in, read_records, text_of
from trl_pafo.data.sources.splits import add_support_groups, agreement, drop_users_without_history, rows_by_user, split_users
from trl_pafo.errors import DataError

TEST_USER_SHARE = 0.4
TEST_PROMPT_SHARE = 0.33
MIN_PAIRS = 4
"""People with fewer pairs in their split are left out, as are those with pairs on one prompt only."""

_FILES = "arguments.jsonl and votes.csv"
_VALUES = {"a1": ("arg1", "arg2"), "a2": ("arg2", "arg1")}


def load(data: DataArguments) -> DatasetDict:
    """Pairs of arguments; the prompt is the debate and the side that is argued for.

    The support rate is the mean leave-one-out agreement with the others on the same pairs, over all prompts. That of a training
    user comes from the votes of training users alone; that of a test user, which only evaluation uses, from all votes. Votes for
    "equally convincing" are left out, as are those of test people on training prompts and of training people on test prompts, and
    people with few pairs. The data does not tell the order of a person's votes, so it is drawn.

    The folder has `arguments.jsonl` (`arg_id`, `topic`, `stance`, `text`) and `votes.csv` (`arg1`, `arg2`, `user`, `value`: a1, a2
    or equal), each plain or gzipped.

    Raises:
        DataError: If a file is missing, a row of it cannot be used, or training or test is left without votes.
    """
    rows = read_pairs(Path(str(data.data_path)))
    rng = random.Random(data.population_seed)
    rng.shuffle(rows)
    prompts = sorted({row["prompt"] for row in rows})
    test_prompts = set(rng.sample(prompts, round(TEST_PROMPT_SHARE * len(prompts))))
    people = sorted({row["user"] for row in rows})
    train_users, test_users = split_users(dict.fromkeys(people), TEST_USER_SHARE, data.population_seed)
    tested = set(test_users)
    parts = {"train": [row for row in rows if row["user"] not in tested and row["prompt"] not in test_prompts]}
    parts["test"] = [row for row in rows if row["user"] in tested and row["prompt"] in test_prompts]
    if not all(parts.values()):
        raise DataError(f"{data.data_path}: no vote is left in training or test. Give the votes of more people on more prompts.")
    splits = DatasetDict({split: drop_users_without_history(Dataset.from_list(part), MIN_PAIRS) for split, part in parts.items()})
    everything = Dataset.from_list(rows)
    support = {"train": agreement(rows_by_user(everything, train_users)), "test": agreement(everything)}
    return add_support_groups(splits, support, data.minority_quantile, data.minority_threshold, "agreement")


def read_pairs(folder: Path) -> list[dict[str, str]]:
    """One row a vote: `prompt`, `chosen`, `rejected`, `user`."""
    prompt_of: dict[str, str] = {}
    text_by_id: dict[str, str] = {}
    for place, record in read_records(file_in(folder, "arguments.jsonl", _FILES)):
        argument = text_of(record, "arg_id", place)
        topic, stance = text_of(record, "topic", place), text_of(record, "stance", place)
        prompt_of[argument] = f"{topic} Which argument for this side is more convincing: {stance}?"
        text_by_id[argument] = text_of(record, "text", place)
    file = file_in(folder, "votes.csv", _FILES)
    rows = []
    for place, vote in read_records(file):
        check_columns(vote, ["arg1", "arg2", "user", "value"], str(file))
        if vote["value"] == "equal":
            continue
        if vote["value"] not in _VALUES:
            raise DataError(f"{place}: `value` must be a1, a2 or equal, got {vote['value']!r}.")
        liked, other = (vote[name] for name in _VALUES[vote["value"]])
        if liked not in text_by_id or other not in text_by_id:
            raise DataError(f"{place}: the arguments {liked!r} and {other!r} are not both in arguments.jsonl.")
        if not vote["user"] or prompt_of[liked] != prompt_of[other]:
            raise DataError(f"{place}: a vote needs a user, and two arguments for the same side of one debate.")
        # A few arguments occur twice, under two numbers.
        if text_by_id[liked] != text_by_id[other]:
            pair = {"prompt": prompt_of[liked], "chosen": text_by_id[liked], "rejected": text_by_id[other]}
            rows.append({**pair, "user": f"ukp-{vote['user']}"})
    if not rows:
        raise DataError(f"{file} holds no vote for one of two arguments.")
    return rows
