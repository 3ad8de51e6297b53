"""Users with one of two tastes, as features of their pairs: what methods that describe a user by a vector can learn in seconds."""

import torch

from trl_pafo.baselines.features import FeaturePairs


def pairs_of_two_tastes(
    num_users: int = 60, seed: int = 0, num_features: int = 4, num_pairs: int = 6, num_past: int = 3
) -> tuple[FeaturePairs, torch.Tensor]:
    """Pairs with past pairs of their own user, and who belongs to the minority, each second user.

    All like the first feature, the majority likes the second one too, the minority dislikes it as much.
    """
    generator = torch.Generator().manual_seed(seed)
    is_minority = torch.arange(num_users) % 2 == 1
    taste = torch.zeros(num_users, num_features)
    taste[:, 0] = 0.3
    taste[:, 1] = torch.where(is_minority, -1.0, 1.0)
    features = torch.randn(num_users, num_pairs + num_past, 2, num_features, generator=generator)
    rewards = torch.einsum("unsd,ud->uns", features, taste)
    features = torch.where((rewards[..., 0] < rewards[..., 1])[..., None, None], features.flip(2), features)
    own, before = features[:, :num_pairs].flatten(0, 1), features[:, num_pairs:].flatten(0, 1)
    user = torch.arange(num_users).repeat_interleave(num_pairs)
    past = [[*range(num_past * number, num_past * (number + 1))] for number in user.tolist()]
    return FeaturePairs(own, before, past, user), is_minority[user]
