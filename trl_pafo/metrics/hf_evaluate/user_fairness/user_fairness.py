"""What `evaluate.load` reads; see `modules.py`."""

from trl_pafo.metrics.hf_evaluate.modules import UserFairness

__all__ = ["UserFairness"]
