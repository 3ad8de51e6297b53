"""Users who hold a type (a style, a domain) and judge prompts that are answered once in every type.

Both shipped and downloaded corpora of this kind (`styles`, `dsp`) are a list of answered prompts; people, splits and
preference pairs are made here.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset, DatasetDict

from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.errors import ConfigError


@dataclass(frozen=True)
class AnsweredPrompt:
    """A prompt with one answer a type."""

    prompt: str
    responses: dict[str, str]


def make_splits(prompts: Sequence[AnsweredPrompt], data: DataArguments, majority: str, minority: str) -> DatasetDict:
    """Draw users and their pairs from prompts with answers of the same types; no two splits share a user or a prompt.

    Half of the validation users are in the minority, however rare it is: what is chosen by groups is chosen by pairs of each. The
    users of the groups hold the types `majority` and `minority` where the data name none.

    The splits are `train`, `test`, and, unless `validation_share` is 0, `validation`, each with `prompt`, `chosen`, `rejected`,
    `user`, `group` and `support_rate` (the share of the training population that holds the user's type). The rows of a user follow
    each other in the order of time. Users that cannot be made from these prompts raise [`ConfigError`].
    """
    held = {"majority": data.majority or [majority], "minority": data.minority or [minority]}
    types = list(prompts[0].responses)
    num_pairs = data.num_pairs
    num_test = round(data.test_prompt_share * len(prompts))
    num_validation = max(1, round(data.validation_share * (len(prompts) - num_test))) if data.validation_share else 0
    sizes = {"test": num_test, "train": len(prompts) - num_test - num_validation, "validation": num_validation}
    sizes = {split: number for split, number in sizes.items() if number or split != "validation"}
    smallest = min(sizes["test"], sizes["train"])
    for group, names in held.items():
        if set(names) - set(types):
            raise ConfigError(f"`{group}` must name types of the corpus ({', '.join(types)}), got {names}.")
    if both := sorted(set(held["majority"]) & set(held["minority"])):
        raise ConfigError(f"A type can belong to only one group; {both} are in `majority` and in `minority`.")
    if num_pairs > smallest:
        raise ConfigError(
            f"Each user judges {num_pairs} different prompts, but one split has only {smallest} of the {len(prompts)}: "
            "lower `pairs_per_user` or `context_pairs`, or move `test_prompt_share` or `validation_share`."
        )
    if 0 < num_validation <= num_pairs - data.pairs_per_user:
        raise ConfigError(
            f"Of the {len(prompts)} prompts, {num_validation} are for validation users, of whose pairs "
            f"{num_pairs - data.pairs_per_user} only serve as history. Raise `validation_share`, or set it to 0."
        )
    users = {}
    for split in sizes:
        number = data.number_of_users(split)
        num_minority = number // 2 if split == "validation" else round(data.minority_ratio * number)
        if not 1 <= num_minority < number:
            raise ConfigError(
                f"`{split}_users`={number} with `minority_ratio`={data.minority_ratio} leaves one group without users."
            )
        groups = ["minority" if user < num_minority else "majority" for user in range(number)]
        users[split] = [(group, held[group][user % len(held[group])]) for user, group in enumerate(groups)]
    holders = Counter(name for _, name in users["train"])
    support = {name: holders[name] / len(users["train"]) for name in types}

    rng = random.Random(data.population_seed)
    shuffled = list(prompts)
    rng.shuffle(shuffled)
    drawn: dict[str, Dataset] = {}
    for split, size in sizes.items():
        own, shuffled = shuffled[:size], shuffled[size:]
        rows: list[dict[str, object]] = []
        for number, (group, first) in enumerate(users[split]):
            second = rng.choice([name for name in types if name != first])
            for answered in rng.sample(own, min(num_pairs, size)):
                liked = second if rng.random() < data.taste_mix else first
                other = rng.choice([name for name in types if name != liked])
                chosen, rejected = answered.responses[liked], answered.responses[other]
                if rng.random() < data.label_noise:
                    chosen, rejected = rejected, chosen
                pair = {"prompt": answered.prompt, "chosen": chosen, "rejected": rejected}
                rows.append({**pair, "user": f"{split}-{number:05d}", "group": group, "support_rate": support[first]})
        drawn[split] = Dataset.from_list(rows)
    return DatasetDict(drawn)
