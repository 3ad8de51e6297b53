"""Saved models on preference pairs: rewards, group and user fairness. It knows no training."""

from trl_pafo import lazily

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "RunArguments": "methods",
        "evaluate_models": "evaluate",
        "fit_groups": "mixture",
        "score_rows": "rewards",
    },
)
