"""The card of a reward model that a method of this package has trained, and what a trainer knows for it."""

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from peft import PeftModel
from transformers.integrations import CodeCarbonCallback
from trl import RewardTrainer
from trl.trainer.utils import get_config_model_id

from trl_pafo.data.history import remembered
from trl_pafo.data.named_groups import remembered_groups
from trl_pafo.models.card import Accuracy, Card, GroupCount, base_id
from trl_pafo.storage.cost import hardware, seconds_in_words
from trl_pafo.trainer.cache_keys import STUDENT_OPTIONS

PAPER = {
    "title": "PAFO: Pareto Fairness Optimization for Personalized Reward Modeling",
    "id": "2606.07988",
    "note": (
        " **as trl-pafo reads it**: `docs/method.md` of trl-pafo says what is the paper's and what is not. No number on this card is "
        "the paper's."
    ),
    "citation": (
        "@article{pafo2026,\n    title        = {{PAFO: Pareto Fairness Optimization for Personalized Reward Modeling}},\n"
        "    author       = {Chunyuan Zheng and Fuli Feng and Haoting Ni and Haoxuan Li and Xiaoyan Zhao and Yang Zhang},\n"
        "    year         = 2026,\n    eprint       = {arXiv:2606.07988}\n}"
    ),
}
HOW_TRAINED = {
    "bradley_terry": "It was trained by the Bradley-Terry loss alone, without a history of the user: one reward for all.",
    "personalized_bt": "It was trained by the Bradley-Terry loss alone, on the pairs of all groups: no teachers, nothing distilled.",
    "worst_group_bt": (
        "It was trained by the Bradley-Terry loss alone, on the pairs of all groups; of several lengths of training it is the one that "
        "served its worst group best on held-out pairs."
    ),
    "distilled_ensemble": (
        "Five models of all groups were trained by the Bradley-Terry loss with other seeds. The mean of their margins was distilled into this "
        "one model, without groups."
    ),
    "pafo": (
        "A teacher for each group was trained on the pairs of that group. Their margins were distilled into this one model, which "
        "needs no group label. Teachers are not part of this repository."
    ),
    "kept": (
        "Teachers for each group were trained, but none was shown to be better than the model of all groups, so nothing was "
        "distilled: this is the model of all groups, trained by the Bradley-Terry loss alone."
    ),
}

# The options of a training that a card shows, in this order. None of them can hold a path.
_OF_ALL = (
    *("num_history", "min_num_history", "history_max_tokens", "history_fields", "max_length"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "num_processes", "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay"),
    *("max_grad_norm", "center_rewards_coefficient", "disable_dropout", "bf16", "fp16", "seed"),
)
_OF_ADAPTERS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "use_dora")


def reward_model_card(
    method: str,
    tokenizer: Any,
    options: Mapping[str, Any],
    base: str | None,
    is_adapter: bool,
    how_trained: str | None = None,
    **known: Any,
) -> Card:
    """The card of a model that was trained by a method of this package, a key of `HOW_TRAINED` or one that `how_trained` tells of.

    The tokenizer remembers how the training pairs were read. Of the options of the training some are shown, and its `base` only if
    it is on the Hub. `known` are other attributes of [`~trl_pafo.models.card.Card`].
    """
    read = remembered(tokenizer)
    if read is not None:
        options = {
            **options,
            **{f"history_{name}": read[name] for name in ("max_tokens", "fields")},
            "num_history": read["num_history"],
        }
    names = (*(STUDENT_OPTIONS if method == "pafo" else ()), *_OF_ALL, *(_OF_ADAPTERS if is_adapter else ()))
    return Card(
        how_trained=how_trained or HOW_TRAINED[method],
        base_model=base_id(base),
        is_adapter=is_adapter,
        is_conversational=bool(tokenizer.chat_template) if read is None else read["inputs"] == "messages",
        history=read if read and read["num_history"] != 0 else None,
        named_groups=(remembered_groups(tokenizer) or {}).get("groups", ()),
        hyperparameters={name: options.get(name) for name in names},
        paper=PAPER if method in ("pafo", "kept") else None,
        **known,
    )


def card_of_training(trainer: RewardTrainer, dropped_pairs: Mapping[str, int], distills: bool) -> Card:
    """The card of the model that a trainer holds, without a title, from its datasets, options and logs.

    `dropped_pairs` counts the training pairs of each group that were too long; `distills` says whether margins of teachers are.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    is_adapter = isinstance(model, PeftModel)
    options = {**vars(trainer.args), "num_processes": trainer.args.world_size}
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
    tokenizer: Any = trainer.processing_class
    read = remembered(tokenizer)
    groups, accuracies = count_groups(trainer.train_dataset), last_accuracies(trainer)
    seconds = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    emissions = emissions_of(trainer)
    definition = "The groups are those of the column `group` of the training data; how they were made is for its author to say."
    return reward_model_card(
        "pafo" if distills else "personalized_bt" if read and read["num_history"] != 0 else "bradley_terry",
        tokenizer,
        options,
        base,
        is_adapter,
        how_trained=getattr(trainer, "how_trained", None),
        tags=[*trainer._tag_names, *(getattr(model, "model_tags", None) or ())],
        group_definition=definition if groups else "The training data name no groups.",
        groups=groups,
        dropped=dropped_pairs,
        accuracies=accuracies,
        cost=cost_of(seconds[-1], hardware(), emissions) if seconds else "",
        emissions=emissions and emissions.grams,
        evaluated_on=f"Measured by the trainer at step {trainer.state.global_step}, on its evaluation dataset. `trl-pafo evaluate` "
        "computes intervals over users.",
    )


class Emissions(NamedTuple):
    """What codecarbon measured: grams of CO2 equivalents, and kWh of electricity."""

    grams: float
    kwh: float

    @classmethod
    def total(cls, records: Iterable[Mapping[str, Any]]) -> "Emissions | None":
        """Of records of codecarbon, in kg and kWh, to four digits; `None` if there is none."""
        found = list(records)
        grams, kwh = (sum(float(record[name]) for record in found) for name in ("emissions", "energy_consumed"))
        return cls(float(f"{1000 * grams:.4g}"), float(f"{kwh:.4g}")) if found else None


def emissions_of(trainer: RewardTrainer) -> Emissions | None:
    """What transformers' callback (`report_to="codecarbon"`) has measured of a training that has ended."""
    trackers = [each.tracker for each in trainer.callback_handler.callbacks if isinstance(each, CodeCarbonCallback)]
    return Emissions.total(data.values for each in trackers if (data := getattr(each, "final_emissions_data", None)) is not None)


def emissions_in(folders: Iterable[Path]) -> Emissions | None:
    """What it has written of trainings into these folders, of each its last word; `None` where it measured not all of them."""
    paths = [folder / "emissions.csv" for folder in folders]
    if not all(path.is_file() for path in paths):  # a part would be told as the whole
        return None
    records: dict[str, Mapping[str, Any]] = {}
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            records |= {row["run_id"]: row for row in csv.DictReader(file)}
    return Emissions.total(records.values())


def cost_of(seconds: float, on: str, emissions: Emissions | None, of_teachers: float = 0.0) -> str:
    """How long a training and those of its teachers took, on what hardware, and what they emitted, for a card."""
    teachers = f", that of its teachers {seconds_in_words(of_teachers)}" if of_teachers else ""
    together = "Together they" if of_teachers else "It"
    measured = "Its emissions were not measured."
    if emissions is not None:
        measured = (
            f"{together} emitted {emissions.grams:g} g of CO2 equivalents, from {emissions.kwh:g} kWh, as codecarbon estimates."
        )
    return f"The training took {seconds_in_words(seconds)}{teachers}, on {on}. {measured}"


def count_groups(rows: Any) -> list[GroupCount]:
    """Users and labeled pairs of each group, the largest group first; empty for a stream, and for rows without groups."""
    if not isinstance(rows, Dataset) or "group" not in rows.column_names:
        return []
    frame = rows.select_columns([name for name in ("group", "user") if name in rows.column_names]).to_pandas()
    pairs = frame["group"].value_counts()
    users = frame.groupby("group")["user"].nunique() if "user" in frame else {}
    return [GroupCount(str(name), int(users[name]) if "user" in frame else None, int(n)) for name, n in pairs.items()]


def last_accuracies(trainer: RewardTrainer) -> list[Accuracy]:
    """The accuracies of the last evaluation on an evaluation dataset of the trainer, all pairs first.

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
        return [Accuracy("", all_users, all_pairs, entry[f"{prefix}_accuracy"]), *of_groups]
    return []
