"""A whole run on a tiny model that takes seconds."""

from pathlib import Path
from typing import Any

from trl import ModelConfig

from trl_pafo.evaluation.methods import RunArguments
from trl_pafo.pipeline.run import Run
from trl_pafo.trainer.config import PAFOConfig

DATA = {
    "train_users": 10,
    "test_users": 10,
    "pairs_per_user": 2,
    "context_pairs": 2,
    "minority_ratio": 0.3,
    "validation_share": 0.0,
}


def small_run(
    folder: Path,
    training: dict[str, Any],
    model: str,
    data: dict[str, Any] | None = None,
    kind: dict[str, Any] | None = None,
    **options: Any,
) -> Run:
    """A run of two steps a training, whose `options` are those of the run or the trainer, and `kind` those of the model."""
    known = set(RunArguments.__dataclass_fields__)
    run_options = {**DATA, "num_resamples": 50, **(data or {}), **{k: v for k, v in options.items() if k in known}}
    args = {**training, "max_steps": 2, "num_history": 1} | {k: v for k, v in options.items() if k not in known}
    return Run(
        RunArguments(**run_options),
        PAFOConfig(str(folder), **args),
        ModelConfig(model_name_or_path=model, **{"dtype": None, **(kind or {})}),
    )
