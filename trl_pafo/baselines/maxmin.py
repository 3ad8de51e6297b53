"""MaxMin-RLHF: a reward model for each of several tastes that nobody names, found by hard EM over users (Chakraborty et al., arXiv
2402.08925, Algorithm 2), and how they serve a new user, which is ours."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_expit

from trl_pafo.data.group_posterior import history_scores
from trl_pafo.errors import DataError
from trl_pafo.metrics.accuracy import FloatArray

NUM_ROUNDS = 3


def hard_em(
    train: Callable[[int, NDArray[Any], int], None],
    log_likelihood: Callable[[], ArrayLike],
    num_users: int,
    num_models: int,
    *,
    num_rounds: int = NUM_ROUNDS,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Train each of several models on its users, assign each user to the model that explains it best, and again.

    Users are dealt out at random, in equal numbers, before the first round. A model to which no user is assigned stays as it is.

    Args:
        train (`Callable`):
            Trains a model further, given its number, the numbers of its users, in rising order, and the number of the round.
        log_likelihood (`Callable`):
            How well each model explains each user now, of shape `(num_users, num_models)`, such as [`user_log_likelihood`].
        num_users, num_models (`int`):
            Of the training users, and of the models.
        num_rounds (`int`, *optional*, defaults to `3`):
            How often both are done.
        seed (`int`, *optional*, defaults to `0`):
            Of the first assignment.

    Returns:
        `np.ndarray` of shape `(num_users,)`: the number of each user's model.

    Raises:
        DataError: If there are fewer users than models.
    """
    if num_users < num_models:
        raise DataError(f"{num_models} models need as many training users, and there are {num_users}. Give more users.")
    of_user = np.random.default_rng(seed).permutation(num_users) % num_models
    for number in range(num_rounds):
        for model in range(num_models):
            mine = np.flatnonzero(of_user == model)
            if len(mine):
                train(model, mine, number)
        of_user = np.asarray(log_likelihood(), dtype=np.float64).argmax(axis=1)
    return of_user


def user_log_likelihood(margins: ArrayLike, user: ArrayLike) -> FloatArray:
    """The sum of `log sigmoid(margin)` over the pairs of each user, of shape `(num_users, num_models)`.

    The margins, of shape `(num_pairs, num_models)`, are in reward units; `user` has the number of each pair's user.
    """
    numbers = np.asarray(user)
    of_pair = log_expit(np.asarray(margins, dtype=np.float64))
    found = np.zeros((int(numbers.max()) + 1, of_pair.shape[1]))
    np.add.at(found, numbers, of_pair)
    return found


def serve(rewards: ArrayLike, past_margins: ArrayLike, past: Sequence[Sequence[int]], offset: ArrayLike) -> FloatArray:
    """The rewards that users get, of shape `(num_pairs, 2)`, chosen first: those of the model that explains a user's past pairs best,
    and for a user without past pairs the least that any model gives.

    The authors train one policy for all users on the least of the models' expected rewards. That a model is chosen by past pairs
    is ours, and so is the offset: rewards of Bradley-Terry models have no common zero, so the least would be a matter of chance.

    Args:
        rewards (`ArrayLike` of shape `(num_pairs, 2, num_models)`):
            Rewards of the chosen and the rejected response under each model.
        past_margins (`ArrayLike` of shape `(num_past_pairs, num_models)`):
            Margins of past pairs under each model, in reward units.
        past (`Sequence[Sequence[int]]`):
            For each pair, the numbers of its user's past pairs.
        offset (`ArrayLike` of shape `(num_models,)`):
            The mean reward of each model on its training responses, which is taken off.
    """
    centered = np.asarray(rewards, dtype=np.float64) - np.asarray(offset, dtype=np.float64)
    best = history_scores(past_margins, past).argmax(axis=1)
    own = np.take_along_axis(centered, best[:, None, None], axis=2)[:, :, 0]
    is_known = np.array([len(history) > 0 for history in past])
    return np.where(is_known[:, None], own, centered.min(axis=2))
