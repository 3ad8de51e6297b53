"""Saved models: where they are, how they are loaded safely, and the rewards that they give. It knows no groups and no training."""

from trl_pafo import lazily

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "FairRewardModel": "fair_reward_model",
        "RewardScorer": "scoring",
        "load_reward_model": "scoring",
        "load_tokenizer": "base_models",
        "materialize_model": "base_models",
        "mean_of_models": "averaging",
        "score_pairs": "scoring",
        "score_sequences": "scoring",
        "set_threads": "base_models",
    },
)
