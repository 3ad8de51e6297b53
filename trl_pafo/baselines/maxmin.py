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

    Users are dealt out at random, by the seed, in equal numbers, before the first round. A model to which no user is assigned stays as it is.
    `train` takes the number of a model, those of its users, in rising order, and that of the round; `log_likelihood` says how well each
    model explains each user now, of shape `(num_users, num_models)`, such as [`user_log_likelihood`]. The result, of shape `(num_users,)`,
    has the number of each user's model. Fewer users than models raise [`DataError`].
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

    Under each model there are the rewards of both responses, of shape `(num_pairs, 2, num_models)`, the margins of past pairs, whose numbers
    `past` has for each pair, `(num_past_pairs, num_models)`, and the `offset` that is taken off: the mean reward of its training responses.
    """
    centered = np.asarray(rewards, dtype=np.float64) - np.asarray(offset, dtype=np.float64)
    best = history_scores(past_margins, past).argmax(axis=1)
    own = np.take_along_axis(centered, best[:, None, None], axis=2)[:, :, 0]
    is_known = np.array([len(history) > 0 for history in past])
    return np.where(is_known[:, None], own, centered.min(axis=2))
