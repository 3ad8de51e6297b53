"""PALM: a small portfolio of policies, one of them near the best for every preference weight, with a certificate.

It knows models, data and TRL's trainers through its oracles alone; search and certificate need numpy and scipy. Nobody but the
command line imports it. The names are imported where they are first used, as in `trl_pafo`.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "CandidateOracle": "oracles.candidates",
    "Certificate": "solver.certificate",
    "DecodingOracle": "oracles.decoding",
    "GRPOOracle": "oracles.grpo",
    "GroupService": "users.serving",
    "Interview": "users.elicitation",
    "MixedPolicy": "oracles.decoding",
    "Optimum": "solver.bounds",
    "Oracle": "core",
    "OracleCall": "core",
    "OracleResult": "core",
    "Pool": "solver.bounds",
    "Portfolio": "portfolio",
    "Recommendation": "users.elicitation",
    "RewardScale": "oracles.candidates",
    "ScaledReward": "oracles.texts",
    "Service": "users.serving",
    "UpperBound": "solver.bounds",
    "UserPortfolio": "users.for_users",
    "WeightPosterior": "users.posterior",
    "build_for_users": "users.for_users",
    "build_portfolio": "build",
    "certify": "solver.certificate",
    "check_weights": "core",
    "compare_sizes": "baselines",
    "export_members": "files.export",
    "fit_reward_models": "oracles.texts",
    "grid_size": "solver.simplex",
    "history_differences": "users.posterior",
    "member_name": "oracles.grpo",
    "minimum_cover": "solver.cover",
    "question_pool": "users.elicitation",
    "random_weights": "solver.simplex",
    "score_candidates": "oracles.texts",
    "serve": "users.serving",
    "size_bound": "solver.simplex",
    "uniform_weights": "solver.simplex",
    "weight_grid": "solver.simplex",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
