"""PersonalLLM: simulated users who weigh the scores of several reward models on eight answers to each prompt.

Source of the data: Zollo et al. (2024), "PersonalLLM: Tailoring LLMs to Individual Preferences", `namkoong-lab/PersonalLLM` on
the Hub. Nothing of it is shipped. The users follow that paper; support rates and groups are ours.
"""

import logging
import re

import numpy as np
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray

from trl_pafo.data.checks import check_columns
from trl_pafo.data.groups import support_rate_by_weights
from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.reading import open_dataset, single_split
from trl_pafo.data.sources.splits import add_support_groups
from trl_pafo.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

CONCENTRATION = 0.05
"""Parameter of the symmetric Dirichlet distribution; the lower, the closer each user is to a single reward model. 0.05 is that of
the PersonalLLM paper (0.01 in its code, 0.1 in LoRe)."""
NUM_PROBES = 500
"""Probe pairs on which the support rates are measured."""

# A score column; `response_1_model`, which names the model that wrote the answer, is none.
_SCORE = re.compile(r"response_(\d+)_(?!model$)(.+)")


def load(data: DataArguments) -> DatasetDict:
    """Users with reward weights drawn from a Dirichlet distribution, and the pairs that they judge: their best answer against the
    worst.

    The reward of user u is the sum over reward models b of w_ub * score_b, each model's scores brought to mean 0 and standard
    deviation 1 over the file, which has `prompt`, `response_1` ... and `response_{i}_{reward model}`. The support rate of a user is
    the share of the training users that agree with the sign of its margin, averaged over probe pairs of training prompts, see
    [`~trl_pafo.data.groups.support_rate_by_weights`].

    Raises:
        ConfigError: If there are fewer prompts than users are to judge.
        DataError: If a column is missing or a score is not a finite number.
    """
    path = str(data.data_path)
    prompts, responses, scores = _read_scored(single_split(open_dataset(path), "train", path), path)
    num_test = round(data.test_prompt_share * len(prompts))
    if not data.num_pairs <= num_test <= len(prompts) - data.num_pairs:
        raise ConfigError(
            f"Each user judges {data.num_pairs} different prompts, but of the {len(prompts)} prompts {num_test} are for test and "
            f"{len(prompts) - num_test} for training: lower `pairs_per_user` or `context_pairs`, or move `test_prompt_share`."
        )
    rng = np.random.default_rng(data.population_seed)
    order = rng.permutation(len(prompts))
    prompts_of = {"train": order[num_test:], "test": order[:num_test]}
    concentration = np.full(scores.shape[2], CONCENTRATION)
    weights = {split: rng.dirichlet(concentration, size=data.number_of_users(split)) for split in prompts_of}
    probes = _probe_features(scores, prompts_of["train"], rng)
    rates = {
        "train": support_rate_by_weights(weights["train"], probes),
        "test": support_rate_by_weights(weights["test"], probes, population=weights["train"]),
    }
    splits, support = DatasetDict(), {}
    for split, own_prompts in prompts_of.items():
        users = [f"{split}-{number:05d}" for number in range(len(weights[split]))]
        rows = []
        for user, own in zip(users, weights[split], strict=True):
            for prompt in rng.choice(own_prompts, data.num_pairs, replace=False):
                rewards, answers = scores[prompt] @ own, responses[prompt]
                # The last of the worst ones: another answer than the best also where all rewards are the same.
                best, worst = answers[rewards.argmax()], answers[::-1][rewards[::-1].argmin()]
                rows.append({"prompt": prompts[prompt], "chosen": best, "rejected": worst, "user": user})
        splits[split] = Dataset.from_list(rows)
        support[split] = dict(zip(users, rates[split].tolist(), strict=True))
    return add_support_groups(splits, support, data.minority_quantile, data.minority_threshold)


def _read_scored(data: Dataset, what: str) -> tuple[list[str], list[tuple[str, ...]], NDArray[np.float64]]:
    """Prompts, their answers, and z-scores of shape `(num_prompts, num_responses, num_reward_models)`."""
    found = [match for match in map(_SCORE.fullmatch, data.column_names) if match]
    numbers = sorted({int(match[1]) for match in found})
    models = sorted({match[2] for match in found})
    if len(numbers) < 2:
        raise DataError(
            f"{what} has no scores of two or more responses, in columns such as response_1_gemma_2b; it has "
            f"{', '.join(data.column_names)}."
        )
    score_columns = [[f"response_{i}_{model}" for model in models] for i in numbers]
    for names in (["prompt"], [f"response_{i}" for i in numbers], *score_columns):
        check_columns(data.column_names, names, what)
    try:
        scores = np.array([[data[name][:] for name in names] for names in score_columns], dtype=np.float64).transpose(2, 0, 1)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: a score is not a number ({error}).") from error
    bad = np.argwhere(~np.isfinite(scores))
    if len(bad):
        row, response, model = bad[0]
        name = score_columns[response][model]
        raise DataError(f"{what}, row {row}: the score {name} is missing or not finite. Leave such rows out.")
    deviation = scores.std(axis=(0, 1))
    if not deviation.all():
        raise DataError(f"{what}: all scores of the reward model {models[int(deviation.argmin())]!r} are the same.")
    scores = (scores - scores.mean(axis=(0, 1))) / deviation

    kept: dict[str, int] = {}
    texts = list(zip(*(data[f"response_{i}"][:] for i in numbers), strict=True))
    for row, (prompt, answers) in enumerate(zip(data["prompt"][:], texts, strict=True)):
        if not all(isinstance(text, str | None) for text in (prompt, *answers)):
            raise DataError(f"{what}, row {row}: the prompt and the responses must be texts.")
        stripped = {(answer or "").strip() for answer in answers}
        if prompt and "" not in stripped and len(stripped) == len(answers):
            kept.setdefault(prompt, row)
    if len(kept) < len(texts):
        logger.warning(
            "%s: %d of %d rows were dropped: they repeat a prompt, or have an empty answer or two identical ones.",
            what,
            len(texts) - len(kept),
            len(texts),
        )
    rows = list(kept.values())
    return list(kept), [texts[row] for row in rows], scores[rows]


def _probe_features(scores: NDArray[np.float64], prompts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Score differences between two random answers to training prompts, of shape `(num_probes, num_reward_models)`."""
    rows = rng.choice(prompts, NUM_PROBES)
    num_responses = scores.shape[1]
    first = rng.integers(num_responses, size=NUM_PROBES)
    second = (first + rng.integers(1, num_responses, size=NUM_PROBES)) % num_responses
    difference: NDArray[np.float64] = scores[rows, first] - scores[rows, second]
    return difference
