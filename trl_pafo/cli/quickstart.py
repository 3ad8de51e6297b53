"""`trl-pafo quickstart`: `trl-pafo run` with defaults that finish in minutes on two CPU cores; every flag of it works."""

from typing import Any

# Population 1 is the one of docs/results.md. The steps are as many as a student needs to learn to use the history (about 150).
DEFAULTS: dict[str, Any] = {
    "output_dir": "runs/quickstart",
    "population_seed": 1,
    "model_name_or_path": "minilm",
    "num_hidden_layers": 3,
    "train_users": 160,
    "test_users": 200,
    "num_history": 1,
    "history_fields": ["chosen"],
    "learning_rate": 4e-4,
    "num_train_epochs": 4.0,
    "train_sampling_strategy": "group_by_length",
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "teacher_min_steps": 30,
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "gradient_checkpointing": False,
    "logging_steps": 5,
    "save_strategy": "no",
    "report_to": "none",
}


def make_parser(prog: str | None = None, short: bool = False) -> Any:
    from trl_pafo.cli.run import make_parser as run_parser

    parser = run_parser(prog, short)
    left = parser.set_defaults_with_config(**DEFAULTS)
    if short:
        parser.epilog += f" Set here: {' '.join(left)}; --bf16 and --use_cpu as the machine has it."
        return parser
    import torch

    left += parser.set_defaults_with_config(use_cpu=not torch.accelerator.is_available())
    assert not left, left
    return parser


def main(run_args: Any, training_args: Any, model_args: Any) -> None:
    from trl_pafo.cli.run import main as run
    from trl_pafo.data.sources.registry import SOURCES, unused_options
    from trl_pafo.models.base_models import num_threads

    if run_args.trainings_at_once is None:
        run_args.trainings_at_once = 2 if training_args.use_cpu and training_args.world_size == 1 and num_threads() > 1 else 1
    # The defaults above are for a source that makes its users, and for teachers that are trained.
    if training_args.teachers or not run_args.needs_teachers or training_args.max_steps > 0:
        run_args.teacher_min_steps = 0
    for name in unused_options(run_args) if run_args.source in SOURCES else ():
        if getattr(run_args, name) == DEFAULTS.get(name):
            setattr(run_args, name, None)
    run(run_args, training_args, model_args)
