"""PersonalLLM: simulated users who weigh the scores of several reward models on eight answers to each prompt.

Source of the data: Zollo et al. (2024), "PersonalLLM: Tailoring LLMs to Individual Preferences", `namkoong-lab/PersonalLLM` on
the Hub. Nothing of it is shipped. The users follow that paper; support rates and groups are ours.
"""

import logging
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray

from trl_pafo.data.checks import TEXTS, check_columns, check_rows
from trl_pafo.data.groups import support_rate_by_type, support_rate_by_weights
from trl_pafo.data.labels import label_names, normalize_labels
from trl_pafo.data.messages import content_key
from trl_pafo.data.sources.reading import open_dataset, single_split
from trl_pafo.data.sources.splits import add_support_groups
from trl_pafo.data.sources.typed_users import Population
from trl_pafo.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

PAIRINGS = ("best_worst", "random")
# A score column; `response_1_model`, which names the model that wrote the answer, is none.
_SCORE = re.compile(r"response_(\d+)_(?!model$)(.+)")


@dataclass(frozen=True)
class _Corpus:
    prompts: list[str]
    responses: list[list[str]]
    scores: NDArray[np.float64]  # (num_prompts, num_responses, num_reward_models), z-scored for each reward model


def load_personal_llm(
    path: str | Path,
    *,
    split: str = "train",
    pairing: str = "best_worst",
    concentration: float = 0.05,
    train_users: int = 200,
    test_users: int = 200,
    pairs_per_user: int = 4,
    context_pairs: int = 1,
    test_prompt_share: float = 0.25,
    minority_quantile: float | None = None,
    minority_threshold: float | None = None,
    num_probes: int = 500,
    seed: int = 0,
) -> DatasetDict:
    """Users with reward weights drawn from a Dirichlet distribution, and the pairs that they judge.

    The reward of user u is the sum over reward models b of w_ub * score_b, each model's scores brought to mean 0 and standard
    deviation 1 over the file. The support rate of a user is the share of the training users that agree with the sign of its
    margin, averaged over probe pairs of training prompts, see [`~trl_pafo.data.groups.support_rate_by_weights`].

    Args:
        path (`str` or `Path`):
            File, folder of `save_to_disk` or Hub id with `prompt`, `response_1` ... and `response_{i}_{reward model}`.
        split (`str`, *optional*, defaults to `"train"`):
            Split of the data to use, where it has several; it is divided again here.
        pairing (`str`, *optional*, defaults to `"best_worst"`):
            `"best_worst"`: a user's best answer against its worst; `"random"`: two random answers.
        concentration (`float`, *optional*, defaults to `0.05`):
            Parameter of the symmetric Dirichlet distribution; the lower, the closer each user is to a single reward model.
            0.05 in the PersonalLLM paper, 0.01 in its code, 0.1 in LoRe.
        train_users, test_users (`int`, *optional*, defaults to `200`):
            Number of users on each side.
        pairs_per_user (`int`, *optional*, defaults to `4`):
            Pairs that each user judges, beside `context_pairs`.
        context_pairs (`int`, *optional*, defaults to `1`):
            Earlier pairs of each user, which only serve as history.
        test_prompt_share (`float`, *optional*, defaults to `0.25`):
            Share of the prompts that only test users see, in (0, 1).
        minority_quantile, minority_threshold (`float`, *optional*):
            As in [`~trl_pafo.data.sources.files.load_files`].
        num_probes (`int`, *optional*, defaults to `500`):
            Number of probe pairs.
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything that is drawn.

    Returns:
        [`~datasets.DatasetDict`]: `train` and `test` in the one schema.

    Raises:
        ConfigError: If an option has a value that cannot be used.
        DataError: If a column is missing or a score is not a finite number.
    """
    if pairing not in PAIRINGS:
        raise ConfigError(f"`pairing` must be one of {', '.join(PAIRINGS)}, got {pairing!r}.")
    if not concentration > 0 or num_probes < 1 or min(train_users, test_users, pairs_per_user) < 1 or context_pairs < 0:
        raise ConfigError(
            "`concentration`, `num_probes`, `train_users`, `test_users` and `pairs_per_user` must be above 0, and "
            "`context_pairs` not below."
        )
    corpus = _read_scored(single_split(open_dataset(path), split, str(path)), str(path))
    rng = np.random.default_rng(seed)
    needed = pairs_per_user + context_pairs
    test_prompts, train_prompts = _divide(len(corpus.prompts), test_prompt_share, needed, rng)
    num_models = corpus.scores.shape[2]
    weights = {
        "train": rng.dirichlet(np.full(num_models, concentration), size=train_users),
        "test": rng.dirichlet(np.full(num_models, concentration), size=test_users),
    }
    probes = _probe_features(corpus, train_prompts, num_probes, rng)
    rates = {
        "train": support_rate_by_weights(weights["train"], probes),
        "test": support_rate_by_weights(weights["test"], probes, population=weights["train"]),
    }
    splits, support = DatasetDict(), {}
    for name, prompts in (("train", train_prompts), ("test", test_prompts)):
        users = [f"{name}-{number:05d}" for number in range(len(weights[name]))]
        rows = [
            {**_judge(corpus, prompt, own, pairing, rng), "user": user}
            for user, own in zip(users, weights[name], strict=True)
            for prompt in rng.choice(prompts, needed, replace=False)
        ]
        splits[name] = Dataset.from_list(rows)
        support[name] = dict(zip(users, rates[name].tolist(), strict=True))
    return add_support_groups(splits, support, minority_quantile, minority_threshold)


def load_personal_llm_types(path: str | Path, population: Population, split: str = "train") -> DatasetDict:
    """The form of the data with eight types of user, one reward model each: rows with `prompt`, `chosen`, `rejected`, `uid`.

    A `uid` is taken as a type that many users hold. Each user draws its pairs from those of its type.

    Args:
        path (`str` or `Path`):
            File, folder of `save_to_disk` or Hub id.
        population ([`~trl_pafo.data.sources.typed_users.Population`]):
            Who the users are; `majority` and `minority` name values of `uid`. `taste_mix` must be 0: a pair of another type need
            not exist for the same prompt.
        split (`str`, *optional*, defaults to `"train"`):
            Split of the data to use, where it has several.

    Returns:
        [`~datasets.DatasetDict`]: `train` and `test` in the one schema.

    Raises:
        ConfigError: If the population cannot be made from these rows.
        DataError: If a column is missing.
    """
    if population.taste_mix:
        raise ConfigError("`taste_mix` must be 0 here: a pair of another type need not exist for the same prompt.")
    data = single_split(open_dataset(path), split, str(path))
    check_columns(data.column_names, [*TEXTS, "uid"], str(path))
    check_rows(data, str(path))
    pairs_of: dict[str, dict[str, dict[str, str]]] = {}
    uids = normalize_labels(data["uid"][:], "uid", str(path), names=label_names(data.features["uid"]))
    for held_by, row in zip(uids, data.select_columns(list(TEXTS)).to_list(), strict=True):
        pairs_of.setdefault(str(held_by), {}).setdefault(content_key(row["prompt"]), row)
    held = [*population.majority, *population.minority]
    population.check(sorted(pairs_of), min(len(pairs_of[uid]) for uid in held) if set(held) <= set(pairs_of) else 0)
    rng = random.Random(population.seed)
    prompts = list(dict.fromkeys(map(content_key, data["prompt"][:])))
    rng.shuffle(prompts)
    num_test = round(population.test_prompt_share * len(prompts))
    test_prompts = set(prompts[:num_test])

    type_of: dict[str, dict[str, str]] = {}
    groups: dict[str, dict[str, str]] = {}
    splits = DatasetDict()
    for name, num_users in (("train", population.train_users), ("test", population.test_users)):
        num_minority = round(population.minority_ratio * num_users)
        rows: list[dict[str, Any]] = []
        type_of[name], groups[name] = {}, {}
        for number in range(num_users):
            user, group = f"{name}-{number:05d}", "minority" if number < num_minority else "majority"
            types = population.minority if group == "minority" else population.majority
            uid = types[number % len(types)]
            type_of[name][user], groups[name][user] = uid, group
            own = [row for prompt, row in pairs_of[uid].items() if (prompt in test_prompts) == (name == "test")]
            needed = population.context_pairs + population.pairs_per_user
            if len(own) < needed:
                raise ConfigError(
                    f"Each user judges {needed} different prompts, but the {name} split has {len(own)} of the type {uid!r}: "
                    "lower `pairs_per_user` or `context_pairs`, or move `test_prompt_share`."
                )
            for row in rng.sample(own, needed):
                chosen, rejected = row["chosen"], row["rejected"]
                if rng.random() < population.label_noise:
                    chosen, rejected = rejected, chosen
                rows.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "user": user, "group": group})
        trained = list(type_of["train"].values())
        rate_of = dict(zip(type_of[name], support_rate_by_type(list(type_of[name].values()), trained).tolist(), strict=True))
        splits[name] = Dataset.from_list([{**row, "support_rate": rate_of[row["user"]]} for row in rows])
    return splits


def _read_scored(data: Dataset, what: str) -> _Corpus:
    found = [match for match in map(_SCORE.fullmatch, data.column_names) if match]
    numbers = sorted({int(match[1]) for match in found})
    models = sorted({match[2] for match in found})
    if len(numbers) < 2 or len(models) < 1:
        raise DataError(
            f"{what} has no scores of two or more responses, in columns such as response_1_gemma_2b; it has "
            f"{', '.join(data.column_names)}."
        )
    needed = ["prompt", *(f"response_{i}" for i in numbers), *(f"response_{i}_{model}" for i in numbers for model in models)]
    check_columns(data.column_names, needed, what)
    columns = {name: data[name][:] for name in needed}
    try:
        scores = np.array([[columns[f"response_{i}_{model}"] for model in models] for i in numbers], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: a score is not a number ({error}).") from error
    scores = scores.transpose(2, 0, 1)
    bad = np.argwhere(~np.isfinite(scores))
    if len(bad):
        row, response, model = bad[0]
        column = f"response_{numbers[response]}_{models[model]}"
        raise DataError(f"{what}, row {row}: the score {column} is missing or not finite. Leave such rows out.")
    deviation = scores.std(axis=(0, 1))
    if not deviation.all():
        raise DataError(f"{what}: all scores of the reward model {models[int(deviation.argmin())]!r} are the same.")
    scores = (scores - scores.mean(axis=(0, 1))) / deviation

    kept: list[int] = []
    seen: set[str] = set()
    texts = list(zip(*(columns[f"response_{i}"] for i in numbers), strict=True))
    for row, prompt in enumerate(columns["prompt"]):
        if not all(isinstance(text, str | None) for text in (prompt, *texts[row])):
            raise DataError(f"{what}, row {row}: the prompt and the responses must be texts.")
        answers = [(answer or "").strip() for answer in texts[row]]
        if prompt and prompt not in seen and all(answers) and len(set(answers)) == len(answers):
            kept.append(row)
            seen.add(prompt)
    if len(kept) < len(texts):
        logger.warning(
            "%s: %d of %d rows are left out, which repeat a prompt or have an empty answer or two that are the same.",
            what,
            len(texts) - len(kept),
            len(texts),
        )
    return _Corpus([columns["prompt"][row] for row in kept], [list(texts[row]) for row in kept], scores[kept])


def _divide(
    num_prompts: int, test_share: float, needed: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of test and of training prompts."""
    num_test = round(test_share * num_prompts)
    if not needed <= num_test <= num_prompts - needed:
        raise ConfigError(
            f"Each user judges {needed} different prompts, but the {num_prompts} prompts with a test share of {test_share} leave "
            f"{num_test} for test and {num_prompts - num_test} for training: lower `pairs_per_user` or `context_pairs`, or move "
            "`test_prompt_share`."
        )
    order = rng.permutation(num_prompts)
    return order[:num_test], order[num_test:]


def _probe_features(
    corpus: _Corpus, prompts: NDArray[np.int64], num_probes: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Score differences between two random answers to training prompts, of shape `(num_probes, num_reward_models)`."""
    rows = rng.choice(prompts, num_probes)
    num_responses = corpus.scores.shape[1]
    first = rng.integers(num_responses, size=num_probes)
    second = (first + rng.integers(1, num_responses, size=num_probes)) % num_responses
    difference: NDArray[np.float64] = corpus.scores[rows, first] - corpus.scores[rows, second]
    return difference


def _judge(corpus: _Corpus, prompt: int, weights: NDArray[np.float64], pairing: str, rng: np.random.Generator) -> dict[str, str]:
    rewards = corpus.scores[prompt] @ weights
    places = np.arange(len(rewards)) if pairing == "best_worst" else rng.choice(len(rewards), 2, replace=False)
    best, worst = places[rewards[places].argmax()], places[rewards[places].argmin()]
    if best == worst:
        # All rewards are the same: no answer is preferred, so that chance decides.
        best, worst = rng.choice(places, 2, replace=False)
    answers = corpus.responses[prompt]
    return {"prompt": corpus.prompts[prompt], "chosen": answers[best], "rejected": answers[worst]}
