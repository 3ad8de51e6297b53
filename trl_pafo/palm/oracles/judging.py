"""Responses of a policy and what reward functions say of them."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from trl.trainer.utils import get_callable_name

from trl_pafo.errors import DataError
from trl_pafo.palm.core import OracleResult

RewardFunction = Callable[..., Sequence[float | None]]
"""As TRL's GRPOTrainer takes it: called with `prompts`, `completions`, `completion_ids` and the columns of the dataset."""


class Judged:
    """Responses with their rewards and KL divergences, row by row of a dataset, and what they say of the policy."""

    def __init__(self) -> None:
        self.responses: dict[int, list[tuple[str, list[float], float]]] = {}

    def add(self, batch: Sequence[tuple[int, int]], texts: Sequence[str], rewards: np.ndarray, kl: np.ndarray) -> None:
        for (row, _), text, values, nats in zip(batch, texts, rewards, kl, strict=True):
            self.responses.setdefault(row, []).append((text, values.tolist(), float(nats)))

    def result(self, policy: Any) -> OracleResult:
        """Means by prompt, and over the prompts."""
        rows = [self.responses[row] for row in sorted(self.responses)]
        values = np.array([np.mean([answer[1] for answer in answers], axis=0) for answers in rows])
        kl = np.array([np.mean([answer[2] for answer in answers]) for answers in rows])
        return OracleResult(values.mean(axis=0), float(kl.mean()), policy, prompt_values=values, prompt_kl=kl)


def call_rewards(
    rewards: Sequence[RewardFunction],
    examples: Sequence[dict[str, Any]],
    texts: Sequence[str],
    completion_ids: Sequence[list[int]],
) -> np.ndarray:
    """Rewards of completions, `(num_completions, num_rewards)`, from functions as GRPOTrainer calls them.

    Raises:
        DataError: If a reward is missing, not finite, or outside [0, 1].
    """
    prompts = [example["prompt"] for example in examples]
    completions = [
        [{"role": "assistant", "content": t}] if isinstance(p, list) else t for p, t in zip(prompts, texts, strict=True)
    ]
    more: dict[str, Any] = {name: [example[name] for example in examples] for name in examples[0] if name != "prompt"}
    # What TRL hands over beside them, for functions that ask for it.
    more |= {"trainer_state": None, "log_extra": lambda *_: None, "log_metric": lambda *_: None}
    columns = []
    for reward in rewards:
        answers = reward(prompts=prompts, completions=completions, completion_ids=list(completion_ids), **more)
        columns.append(checked_rewards(answers, len(prompts), get_callable_name(reward)))
    return np.stack(columns, axis=-1)


def check_prompts(dataset: Dataset, name: str) -> None:
    """Raise [`DataError`] unless a dataset has rows with `prompt`; `name` says what it is."""
    if "prompt" not in dataset.column_names or not len(dataset):
        raise DataError(f"{name} must be rows with a column `prompt`; got {len(dataset)} rows of {dataset.column_names}.")


def checked_rewards(answers: Any, number: int, name: str) -> np.ndarray:
    """What a reward function returned, `(number,)`; [`DataError`] if a value is missing, not finite, or outside [0, 1]."""
    try:
        values = np.array([np.nan if a is None else float(a) for a in answers])
    except TypeError as error:
        raise DataError(
            f"The reward {name!r} must return a list of numbers, not {type(answers).__name__}; async functions are not supported."
        ) from error
    bad = ~((values >= 0) & (values <= 1))
    if len(values) != number or bad.any():
        what = f"{len(values)} values for {number} responses" if len(values) != number else f"the value {values[bad][0]}"
        raise DataError(
            f"The reward {name!r} returned {what}: a portfolio needs one number in [0, 1] per response. Normalize it, for example "
            "by a sigmoid, and give a number to every response."
        )
    return values


def digest_rows(dataset: Dataset) -> str:
    """Digest of the rows of a dataset, whatever file or step they came from."""
    digest = hashlib.sha256()
    for batch in dataset.iter(batch_size=1000):
        digest.update(json.dumps(batch, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
