"""Saved models: where they are, how they are loaded safely, the rewards that they give, their cards and the Hub. It knows no method and no
training."""

from trl_pafo import lazily

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "Card": "card",
        "FairRewardModel": "fair_reward_model",
        "FeatureReader": "scoring",
        "HubError": "upload",
        "RewardScorer": "scoring",
        "load_reward_model": "loading",
        "load_tokenizer": "base_models",
        "materialize_model": "base_models",
        "mean_of_models": "averaging",
        "score_pairs": "batches",
        "score_sequences": "batches",
        "set_threads": "base_models",
        "upload_model": "upload",
        "with_new_head": "base_models",
    },
)
