"""What `evaluate.load` reads; see `modules.py`."""

from trl_pafo.metrics.hf_evaluate.modules import GroupFairness

__all__ = ["GroupFairness"]
