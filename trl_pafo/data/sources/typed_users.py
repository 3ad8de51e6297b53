"""Users who hold a type (a style, a domain) and judge prompts that are answered once in every type.

Both shipped and downloaded corpora of this kind (`styles`, `dsp`) come down to a list of answered prompts; this room
makes people, splits and preference pairs of it.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset, DatasetDict

from trl_pafo.errors import ConfigError, DataError


@dataclass(frozen=True)
class AnsweredPrompt:
    """A prompt with one answer a type."""

    prompt: str
    responses: dict[str, str]


@dataclass(frozen=True)
class Population:
    """
    Who the users are and how many pairs they judge.

    Parameters:
        majority (`Sequence[str]`):
            Types that the users of the majority group hold, each by an equal share.
        minority (`Sequence[str]`):
            Types of the minority group.
        minority_ratio (`float`, *optional*, defaults to `0.1`):
            Share of users that belong to the minority, in training and in test, in (0, 1).
        train_users (`int`, *optional*, defaults to `200`):
            Number of users in training.
        test_users (`int`, *optional*, defaults to `200`):
            Number of users in test, none of whom is in training.
        pairs_per_user (`int`, *optional*, defaults to `4`):
            Pairs that each user judges, beside `context_pairs`.
        context_pairs (`int`, *optional*, defaults to `1`):
            Earlier pairs of each user, which only serve as history.
        test_prompt_share (`float`, *optional*, defaults to `0.25`):
            Share of the prompts that only test users see, in (0, 1).
        taste_mix (`float`, *optional*, defaults to `0.0`):
            Share of pairs in which a user prefers a second type (each user has one of its own), in [0, 1].
        label_noise (`float`, *optional*, defaults to `0.0`):
            Share of pairs whose label is turned round, in [0, 0.5).
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything that is drawn.
    """

    majority: Sequence[str]
    minority: Sequence[str]
    minority_ratio: float = 0.1
    train_users: int = 200
    test_users: int = 200
    pairs_per_user: int = 4
    context_pairs: int = 1
    test_prompt_share: float = 0.25
    taste_mix: float = 0.0
    label_noise: float = 0.0
    seed: int = 0

    def check(self, types: Sequence[str], num_prompts: int) -> None:
        """Raise [`ConfigError`] where the population cannot be made from these prompts."""
        for name, held in (("majority", self.majority), ("minority", self.minority)):
            unknown = sorted(set(held) - set(types))
            if unknown or not held:
                raise ConfigError(f"`{name}` must name types of the corpus ({', '.join(types)}), got {list(held)}.")
        both = sorted(set(self.majority) & set(self.minority))
        if both:
            raise ConfigError(f"A type can be held by one group only; {both} are in `majority` and in `minority`.")
        if not 0 < self.minority_ratio < 1:
            raise ConfigError(f"`minority_ratio` must be above 0 and below 1, got {self.minority_ratio}.")
        if not 0 < self.test_prompt_share < 1:
            raise ConfigError(f"`test_prompt_share` must be above 0 and below 1, got {self.test_prompt_share}.")
        if not 0 <= self.taste_mix <= 1 or not 0 <= self.label_noise < 0.5:
            raise ConfigError(
                f"`taste_mix` must be in [0, 1] and `label_noise` in [0, 0.5), got {self.taste_mix} and {self.label_noise}."
            )
        if self.pairs_per_user < 1 or self.context_pairs < 0:
            raise ConfigError(
                f"`pairs_per_user` must be at least 1 and `context_pairs` at least 0, got {self.pairs_per_user} and "
                f"{self.context_pairs}."
            )
        num_test = round(self.test_prompt_share * num_prompts)
        smallest = min(num_test, num_prompts - num_test)
        needed = self.pairs_per_user + self.context_pairs
        if needed > smallest:
            raise ConfigError(
                f"Each user judges {needed} different prompts, but one split has only {smallest} of the {num_prompts}: "
                "lower `pairs_per_user` or `context_pairs`, or move `test_prompt_share`."
            )
        for split, users in (("train_users", self.train_users), ("test_users", self.test_users)):
            if not 1 <= round(users * self.minority_ratio) < users:
                raise ConfigError(
                    f"`{split}`={users} with `minority_ratio`={self.minority_ratio} leaves one group without users."
                )


def make_splits(prompts: Sequence[AnsweredPrompt], population: Population) -> DatasetDict:
    """Draw users and their pairs; the test split shares neither a user nor a prompt with the training split.

    Returns:
        [`~datasets.DatasetDict`]: `train` and `test`, each with `prompt`, `chosen`, `rejected`, `user`, `group` and
        `support_rate` (the share of the training population that holds the user's type). The rows of a user follow each
        other in the order of time.

    Raises:
        ConfigError: If the population cannot be made from these prompts.
        DataError: If two prompts are the same or an answer is missing.
    """
    if not prompts:
        raise DataError("The corpus holds no prompt.")
    types = list(prompts[0].responses)
    if len({p.prompt for p in prompts}) < len(prompts):
        raise DataError("Two prompts of the corpus are the same; test prompts could then not be told from training prompts.")
    for p in prompts:
        if set(p.responses) != set(types):
            raise DataError(f"The prompt {p.prompt[:60]!r} lacks answers of the types {sorted(set(types) ^ set(p.responses))}.")
    population.check(types, len(prompts))

    rng = random.Random(population.seed)
    shuffled = list(prompts)
    rng.shuffle(shuffled)
    num_test = round(population.test_prompt_share * len(shuffled))
    test_users, train_users = _users(population, population.test_users), _users(population, population.train_users)
    holders = Counter(held for _, held in train_users)
    support = {held: holders[held] / len(train_users) for held in types}
    test = _draw_split("test", shuffled[:num_test], types, population, test_users, support, rng)
    train = _draw_split("train", shuffled[num_test:], types, population, train_users, support, rng)
    return DatasetDict(train=train, test=test)


def _users(population: Population, number: int) -> list[tuple[str, str]]:
    """Group and type of each user."""
    num_minority = round(population.minority_ratio * number)
    return [
        ("minority", population.minority[user % len(population.minority)])
        if user < num_minority
        else ("majority", population.majority[user % len(population.majority)])
        for user in range(number)
    ]


def _draw_split(
    split: str,
    prompts: list[AnsweredPrompt],
    types: list[str],
    population: Population,
    users: list[tuple[str, str]],
    support: dict[str, float],
    rng: random.Random,
) -> Dataset:
    rows: list[dict[str, object]] = []
    for number, (group, first) in enumerate(users):
        second = rng.choice([t for t in types if t != first])
        for answered in rng.sample(prompts, population.context_pairs + population.pairs_per_user):
            liked = second if rng.random() < population.taste_mix else first
            other = rng.choice([t for t in types if t != liked])
            chosen, rejected = answered.responses[liked], answered.responses[other]
            if rng.random() < population.label_noise:
                chosen, rejected = rejected, chosen
            rows.append(
                {
                    "prompt": answered.prompt,
                    "chosen": chosen,
                    "rejected": rejected,
                    "user": f"{split}-{number:05d}",
                    "group": group,
                    "support_rate": support[first],
                }
            )
    return Dataset.from_list(rows)
