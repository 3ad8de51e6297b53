"""PALM: a small portfolio of policies for every preference weight, with a certificate. numpy and scipy alone."""

from trl_pafo.palm.bounds import Optimum, Pool, UpperBound
from trl_pafo.palm.build import build_portfolio
from trl_pafo.palm.certificate import Certificate, certify
from trl_pafo.palm.core import Oracle, OracleCall, OracleResult, check_weights
from trl_pafo.palm.cover import minimum_cover
from trl_pafo.palm.elicitation import Interview, Recommendation, question_pool
from trl_pafo.palm.for_users import UserPortfolio, build_for_users
from trl_pafo.palm.portfolio import Portfolio
from trl_pafo.palm.posterior import NoisyInterview, WeightPosterior, fit_weights, history_differences
from trl_pafo.palm.serving import GroupService, Service, serve
from trl_pafo.palm.simplex import grid_size, random_weights, size_bound, uniform_weights, weight_grid

__all__ = [
    "Certificate",
    "GroupService",
    "Interview",
    "NoisyInterview",
    "Optimum",
    "Oracle",
    "OracleCall",
    "OracleResult",
    "Pool",
    "Portfolio",
    "Recommendation",
    "Service",
    "UpperBound",
    "UserPortfolio",
    "WeightPosterior",
    "build_for_users",
    "build_portfolio",
    "certify",
    "check_weights",
    "fit_weights",
    "grid_size",
    "history_differences",
    "minimum_cover",
    "question_pool",
    "random_weights",
    "serve",
    "size_bound",
    "uniform_weights",
    "weight_grid",
]
