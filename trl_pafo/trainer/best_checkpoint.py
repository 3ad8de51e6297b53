"""Which checkpoint of a training is kept: the best by the accuracies of groups. transformers does the work. (Not from the paper.)"""

from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from trl.data_utils import get_dataset_column_names

from trl_pafo.data.groups import group_names
from trl_pafo.errors import ConfigError, DataError

logger = get_logger(__name__)

BEST_CHECKPOINT = {"group_balanced": "accuracy_group_mean", "worst_group": "accuracy_group_min", "overall": "accuracy"}
"""The metric of an evaluation by which each choice compares checkpoints; higher is better."""

_STEPS = 0.1  # of the training, where no option says


def fill_in(args: Any) -> None:
    """Set what transformers needs to keep the best checkpoint, where it has its default; nothing without `best_checkpoint`.

    Raises:
        ConfigError: If another option contradicts `best_checkpoint`.
    """
    if args.best_checkpoint is None:
        return
    if args.best_checkpoint not in BEST_CHECKPOINT:
        raise ConfigError(f"`best_checkpoint` must be one of {', '.join(BEST_CHECKPOINT)}, got {args.best_checkpoint!r}.")
    what, metric = f"best_checkpoint={args.best_checkpoint!r}", BEST_CHECKPOINT[args.best_checkpoint]
    if args.metric_for_best_model is None:
        args.metric_for_best_model = f"eval_{metric}"
    if not f"_{args.metric_for_best_model}".endswith(f"_{metric}"):
        raise ConfigError(
            f"{what} compares checkpoints by {metric}, not by metric_for_best_model={args.metric_for_best_model!r}. Leave out one "
            "of the two."
        )
    if args.greater_is_better is False:
        raise ConfigError(f"{what} keeps the checkpoint of the highest accuracy. Leave out greater_is_better=False.")
    if args.save_strategy == "no":
        raise ConfigError(f"{what} chooses among checkpoints, and save_strategy='no' writes none. Leave that option out.")
    args.load_best_model_at_end = args.greater_is_better = True
    args.save_total_limit = args.save_total_limit or 2  # the best, and the last, from which a training resumes

    saves, evaluates = SaveStrategy(args.save_strategy).value, IntervalStrategy(args.eval_strategy).value
    own_steps = saves == "steps" and args.save_steps != TrainingArguments.save_steps
    if evaluates == "no":
        evaluates = "epoch" if saves == "epoch" else "steps"
    if evaluates == "steps" and not args.eval_steps:
        args.eval_steps = args.save_steps if own_steps else _STEPS
    if saves == "steps" and not own_steps:
        saves, args.save_steps = evaluates, args.eval_steps if evaluates == "steps" else args.save_steps
    # Multiples would do for transformers, which then keeps no checkpoint where the best evaluation was at a step without one.
    if saves != "best" and (saves != evaluates or (saves == "steps" and args.save_steps != args.eval_steps)):
        raise ConfigError(
            f"{what} evaluates each checkpoint, and eval_strategy={evaluates!r} (eval_steps={args.eval_steps}) is not "
            f"save_strategy={saves!r} (save_steps={args.save_steps}). Leave out the options of one of the two."
        )
    args.save_strategy, args.eval_strategy = SaveStrategy(saves), IntervalStrategy(evaluates)


def choose_checkpoint(args: Any, train_dataset: Any, eval_dataset: Any) -> None:
    """Fill in what is left of the options, see [`fill_in`], and look whether the data can choose; nothing without
    `best_checkpoint`.

    Raises:
        ConfigError: If there is no evaluation dataset, or `metric_for_best_model` names none of several.
        DataError: If groups choose, and the evaluation dataset has none.
    """
    fill_in(args)
    if args.best_checkpoint is None:
        return
    what, metric = f"best_checkpoint={args.best_checkpoint!r}", BEST_CHECKPOINT[args.best_checkpoint]
    if eval_dataset is None:
        raise ConfigError(f"{what} chooses by the accuracy on `eval_dataset`, and there is none. Give one.")
    datasets = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
    named = {f"{name}_{metric}".lstrip("_"): rows for name, rows in datasets.items()}
    key = args.metric_for_best_model.removeprefix("eval_")
    if key not in named:
        raise ConfigError(
            f"{what}: metric_for_best_model={args.metric_for_best_model!r} is of no evaluation dataset. Set it to that of the "
            f"dataset that decides: {' or '.join(f'eval_{key}' for key in named)}."
        )
    if args.best_checkpoint == "overall":
        return
    rows = named[key]
    groups = group_names(rows)
    if "group" not in get_dataset_column_names(rows) or (isinstance(rows, Dataset) and not groups):
        raise DataError(
            f"{what} needs the column `group` in `eval_dataset`. Add the group of each pair's user, or set 'overall'."
        )
    missing = sorted(group_names(train_dataset) - groups) if groups else []
    if missing:
        logger.warning(f"{what}: the evaluation pairs have no say for {', '.join(missing)}, of which they hold no pair.")
