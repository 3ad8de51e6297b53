"""What a trainer knows of the model that it trains, for the model's card."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import is_wandb_available
from trl import RewardTrainer
from trl.trainer.utils import get_comet_experiment_url, get_config_model_id, get_trackio_space_url

from trl_pafo.data.history import remembered
from trl_pafo.hub.card import HYPERPARAMETERS, STUDENT_HYPERPARAMETERS, Accuracy, Card, GroupCount, base_id, hides_groups


def card_of_training(trainer: RewardTrainer, dropped_pairs: Mapping[str, int], distills: bool) -> Card:
    """The card of the model that a trainer holds, without a title.

    Args:
        trainer ([`~trl.RewardTrainer`]):
            Its datasets, options and logs.
        dropped_pairs (`Mapping[str, int]`):
            Training pairs of each group that were too long.
        distills (`bool`):
            Whether the margins of teachers are distilled.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    is_adapter = isinstance(model, PeftModel)
    options = {name: getattr(trainer.args, name, None) for name in HYPERPARAMETERS}
    options["num_processes"] = trainer.args.world_size
    base = get_config_model_id(model.config)
    if is_adapter:
        adapter: Any = model.peft_config[model.active_adapter]
        base = adapter.base_model_name_or_path
        names = {
            "lora_r": "r",
            "lora_alpha": "lora_alpha",
            "lora_dropout": "lora_dropout",
            "lora_target_modules": "target_modules",
        }
        options |= {option: getattr(adapter, name, None) for option, name in names.items()}
    if not distills:
        options = {name: value for name, value in options.items() if name not in STUDENT_HYPERPARAMETERS}
    settings = remembered(trainer.processing_class)  # type: ignore[arg-type]
    history = settings if settings and settings["num_history"] != 0 else None
    groups = count_groups(trainer.train_dataset)
    accuracies, split = last_accuracies(trainer)
    step = "" if hides_groups(groups, accuracies) else f" at step {trainer.state.global_step}"  # steps tell the number of pairs
    return Card(
        method="pafo" if distills else "personalized_bt" if history else "bradley_terry",
        tags=[*trainer._tag_names, *(getattr(model, "model_tags", None) or ())],
        base_model=base_id(base),
        base_is_local=is_adapter and base_id(base) is None,
        is_adapter=is_adapter,
        is_conversational=settings["inputs"] == "messages" if settings else bool(trainer.processing_class.chat_template),  # type: ignore[union-attr]
        history=history,
        group_definition="The groups are those of the column `group` of the training data; how they were made is for its author to say."
        if groups
        else "The training data name no groups.",
        groups=groups,
        dropped=dropped_pairs,
        accuracies=accuracies,
        evaluated_on=f"Measured by the trainer{step}, on its evaluation dataset.",
        interval_method="`trl-pafo evaluate` computes intervals over users.",
        eval_split=split,
        hyperparameters=options,
        links=_links(),
    )


def count_groups(rows: Any) -> list[GroupCount]:
    """Users and labeled pairs of each group, the largest group first; empty for a stream, and for rows without groups."""
    if not isinstance(rows, Dataset) or "group" not in rows.column_names:
        return []
    frame = rows.select_columns([name for name in ("group", "user", "has_label") if name in rows.column_names]).to_pandas()
    if "has_label" in frame:
        frame = frame[frame["has_label"]]
    pairs = frame["group"].value_counts()
    users = frame.groupby("group")["user"].nunique() if "user" in frame else Counter()
    return [GroupCount(str(name), int(users[name]) if "user" in frame else None, int(n)) for name, n in pairs.items()]


def last_accuracies(trainer: RewardTrainer) -> tuple[list[Accuracy], str]:
    """The accuracies of the last evaluation on an evaluation dataset of the trainer, all pairs first, and the dataset's name.

    Of an evaluation on other pairs it is not known whose they are, so it is left out.
    """
    given: Any = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"": trainer.eval_dataset}
    datasets = {f"eval_{name}" if name else "eval": rows for name, rows in given.items() if rows is not None}
    counts = {prefix: sorted(count_groups(rows), key=lambda count: count.name) for prefix, rows in datasets.items()}
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    for entry in reversed(trainer.state.log_history):
        prefix = next((m[1] for key in entry if (m := re.fullmatch(r"(eval(?:_.+)?)_accuracy", key)) and m[1] in counts), None)
        if prefix is None or (best and entry["step"] != best):
            continue
        logged = {key.removeprefix(f"{prefix}_count/"): n for key, n in entry.items() if key.startswith(f"{prefix}_count/") and n}
        if logged != {count.name: count.pairs for count in counts[prefix]}:
            continue
        users = [count.users for count in counts[prefix]]
        all_users = sum(users) if users and None not in users else None  # type: ignore[arg-type]
        all_pairs = len(datasets[prefix]) if isinstance(datasets[prefix], Dataset) else 0
        of_groups = [Accuracy(c.name, c.users, c.pairs, entry[f"{prefix}_accuracy/{c.name}"]) for c in counts[prefix]]
        return [Accuracy("", all_users, all_pairs, entry[f"{prefix}_accuracy"]), *of_groups], prefix.removeprefix("eval_")
    return [], "eval"


def _links() -> dict[str, str]:
    links = {"Comet": get_comet_experiment_url(), "Trackio": get_trackio_space_url()}
    if is_wandb_available():
        import wandb

        links["Weights & Biases"] = wandb.run.url if wandb.run is not None else None
    return {name: url for name, url in links.items() if url}
