"""UKPConvArg1: real people say which of two arguments for the same side of a debate is more convincing.

Source of the data: Habernal and Gurevych (ACL 2016), "Which argument is more convincing?", CC BY 4.0. Nothing of it is
shipped. Each pair was judged by several people, so that the support of a person's taste is measured, not made. The
division into groups is ours.
"""

import random
from pathlib import Path

from datasets import Dataset, DatasetDict

from trl_pafo.data.checks import check_columns
from trl_pafo.data.sources.reading import read_records, text_of
from trl_pafo.data.sources.splits import add_support_groups, agreement, drop_users_without_history, rows_by_user, split_users
from trl_pafo.errors import ConfigError, DataError

ARGUMENTS = ("arguments.jsonl", "arguments.jsonl.gz")
VOTES = ("votes.csv", "votes.csv.gz")
_VALUES = {"a1": ("arg1", "arg2"), "a2": ("arg2", "arg1")}


def load_ukp_convarg(
    path: str | Path,
    test_user_share: float = 0.4,
    test_prompt_share: float = 0.33,
    min_pairs: int = 4,
    minority_quantile: float | None = None,
    minority_threshold: float | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Pairs of arguments; the prompt is the debate and the side that is argued for.

    The support rate is the mean leave-one-out agreement with the others on the same pairs, over all prompts. That of a
    training user comes from the votes of training users alone; that of a test user, which only evaluation uses, from all
    votes. Votes for "equally convincing" are left out. The data does not tell the order of a person's votes, so it is drawn.

    Args:
        path (`str` or `Path`):
            Folder with `arguments.jsonl` (`arg_id`, `topic`, `stance`, `text`) and `votes.csv` (`arg1`, `arg2`, `user`, `value`:
            a1, a2 or equal), each plain or gzipped.
        test_user_share (`float`, *optional*, defaults to `0.4`):
            Share of the people in test, in (0, 1). Their votes on training prompts are not used, nor are the votes of
            training people on test prompts.
        test_prompt_share (`float`, *optional*, defaults to `0.33`):
            Share of the prompts (sides of a debate) in test, in (0, 1).
        min_pairs (`int`, *optional*, defaults to `4`):
            People with fewer pairs in their split are left out, as are those with pairs on one prompt only.
        minority_quantile, minority_threshold (`float`, *optional*):
            As in [`~trl_pafo.data.sources.files.load_files`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of the division and the order.

    Returns:
        [`~datasets.DatasetDict`]: `train` and `test` in the one schema.

    Raises:
        ConfigError: If a share leaves one side empty.
        DataError: If a file is missing, or a row of it cannot be used.
    """
    rows = read_pairs(Path(path))
    rng = random.Random(seed)
    rng.shuffle(rows)
    prompts = sorted({row["prompt"] for row in rows})
    num_test = round(test_prompt_share * len(prompts))
    if not 0 < num_test < len(prompts):
        raise ConfigError(
            f"`test_prompt_share`={test_prompt_share} of {len(prompts)} prompts leaves training or test without any."
        )
    test_prompts = set(rng.sample(prompts, num_test))
    people = sorted({row["user"] for row in rows})
    train_users, test_users = split_users(dict.fromkeys(people), test_user_share, seed)
    tested = set(test_users)
    train = [row for row in rows if row["user"] not in tested and row["prompt"] not in test_prompts]
    test = [row for row in rows if row["user"] in tested and row["prompt"] in test_prompts]
    if not train or not test:
        raise DataError("No vote is left in training or test; move the shares of users and prompts in test.")
    splits = DatasetDict(
        train=drop_users_without_history(Dataset.from_list(train), min_pairs),
        test=drop_users_without_history(Dataset.from_list(test), min_pairs),
    )
    everything = Dataset.from_list(rows)
    support = {"train": agreement(rows_by_user(everything, train_users)), "test": agreement(everything)}
    return add_support_groups(splits, support, minority_quantile, minority_threshold)


def read_pairs(folder: Path) -> list[dict[str, str]]:
    """One row a vote: `prompt`, `chosen`, `rejected`, `user`."""
    prompt_of: dict[str, str] = {}
    text_by_id: dict[str, str] = {}
    for place, record in read_records(_file(folder, ARGUMENTS)):
        argument = text_of(record, "arg_id", place)
        topic, stance = text_of(record, "topic", place), text_of(record, "stance", place)
        prompt_of[argument] = f"{topic} Which argument for this side is more convincing: {stance}?"
        text_by_id[argument] = text_of(record, "text", place)
    file = _file(folder, VOTES)
    rows = []
    for place, vote in read_records(file):
        check_columns(vote, ["arg1", "arg2", "user", "value"], str(file))
        if vote["value"] == "equal":
            continue
        if vote["value"] not in _VALUES:
            raise DataError(f"{place}: `value` must be a1, a2 or equal, got {vote['value']!r}.")
        liked, other = (vote[name] for name in _VALUES[vote["value"]])
        if liked not in text_by_id or other not in text_by_id:
            raise DataError(f"{place}: the arguments {liked!r} and {other!r} are not both in {ARGUMENTS[0]}.")
        if not vote["user"] or prompt_of[liked] != prompt_of[other]:
            raise DataError(f"{place}: a vote needs a user, and two arguments for the same side of one debate.")
        # A few arguments occur twice, under two numbers.
        if text_by_id[liked] != text_by_id[other]:
            pair = {"prompt": prompt_of[liked], "chosen": text_by_id[liked], "rejected": text_by_id[other]}
            rows.append({**pair, "user": f"ukp-{vote['user']}"})
    if not rows:
        raise DataError(f"{file} holds no vote for one of two arguments.")
    return rows


def _file(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"The folder {folder} lacks {names[0]} (or {names[1]}). Give the folder that holds both files.")
