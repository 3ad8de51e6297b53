"""PALM: a small portfolio of policies, one of them near the best for every preference weight, with a certificate.

It knows models, data and TRL's trainers through its oracles alone; search and certificate need numpy and scipy. Nobody but the
command line imports it.
"""

from trl_pafo import lazily

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
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
    },
)
