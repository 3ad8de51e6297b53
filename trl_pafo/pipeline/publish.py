"""The models of a finished run: a card beside each, and one of them to the Hub."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from trl_pafo.data.history import remembered
from trl_pafo.errors import ConfigError, RunFolderError
from trl_pafo.evaluation.methods import TITLES
from trl_pafo.hub.card import (
    CARD_NAME,
    FEWEST_USERS,
    STUDENT_HYPERPARAMETERS,
    Accuracy,
    Card,
    GroupCount,
    base_id,
    hides_groups,
    hub_ids,
)
from trl_pafo.hub.upload import create_repo, files_to_push, upload_model
from trl_pafo.metrics.verdict import is_known
from trl_pafo.models.safe_loading import ADAPTER_CONFIG
from trl_pafo.report.records import Record, read_record
from trl_pafo.report.reproduce import given_teachers
from trl_pafo.storage.run_folder import MANIFEST, write_text

_STUDENTS = ("pafo", "pafo_own_group")
_TAGS = ("trl", "reward-trainer")


def write_cards(folder: str | Path) -> list[Path]:
    """Write a README.md beside each model of a finished run, from its results; return the files.

    Args:
        folder (`str` or `Path`):
            Folder of the run.

    Raises:
        RunFolderError: If it is no finished run.
    """
    record = read_record(folder)
    written = []
    for method in record.methods:
        model = record.folder / "models" / method
        if model.is_dir():  # these are the teachers
            write_text(model / CARD_NAME, run_card(record, method).render())
            written.append(model / CARD_NAME)
    return written


def run_card(record: Record, method: str) -> Card:
    """What the run knows of one of its models."""
    folder = record.folder / "models" / method
    stage = record.stages.get(method, {}).get("inputs", {})
    data = record.results.get("data", {})
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    settings = dict(stage)
    is_student = method in _STUDENTS and "instead" not in stage
    if not is_student:
        settings = {name: value for name, value in settings.items() if name not in STUDENT_HYPERPARAMETERS}
    if not is_adapter:
        settings = {name: value for name, value in settings.items() if not name.startswith(("lora_", "use_"))}
    history = remembered(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    history = history if history and history["num_history"] != 0 else None
    if history is not None:
        settings |= {"num_history": history.get("num_history"), "history_max_tokens": history.get("max_tokens")}
    base = base_id(stage.get("model_name_or_path"))
    verdict = record.results.get("verdicts", {}).get(method)
    groups, accuracies = _counts(record, "train"), _accuracies(record, method)
    findings = []
    if verdict:
        sentence = verdict["sentence"]
        if hides_groups(accuracies) and verdict["verdict"] != "same":  # differences and numbers of users would give it away
            sentence = f"{verdict['verdict']}; without numbers, since a group has fewer than {FEWEST_USERS} test users."
        findings = [f"Against {record.title(str(record.reference))}: {sentence}"]
    return Card(
        title=f"{record.title(method)} reward model",
        method=("pafo" if is_student else "kept") if method in _STUDENTS else method,
        tags=(*_TAGS, "pafo") if method in _STUDENTS else _TAGS,
        base_model=base,
        base_is_local=is_adapter and base is None,
        datasets=hub_ids([data.get("data_path")]),
        is_adapter=is_adapter,
        history=history,
        group_definition=record.group_definition(numbers=not hides_groups(groups, accuracies)),
        groups=groups,
        accuracies=accuracies,
        evaluated_on="On the test pairs of the run, which no training of the run has seen."
        + (" Its teachers were given: what they have seen is not known." if is_student and given_teachers(record) else ""),
        interval_method="Intervals come from a bootstrap over users, stratified by group; that of few users is unknown.",
        eval_dataset=f"{data.get('source', 'preference pairs')} (test users of trl-pafo)",
        findings=findings,
        hyperparameters=settings,
    )


def push_run(
    folder: str | Path,
    hub_model_id: str,
    *,
    method: str | None = None,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload model",
    base_model: str | None = None,
) -> Any:
    """Push one model of a finished run, or a folder with a saved model: the model, its tokenizer and its card, nothing else.

    Args:
        folder (`str` or `Path`):
            Folder of a run, or of a saved model.
        hub_model_id (`str`):
            `name` or `namespace/name`; made where it does not exist.
        method (`str`, *optional*):
            Which model of the run. Defaults to PAFO's.
        token, private, revision, message, base_model (*optional*):
            As in [`~trl_pafo.hub.upload.create_repo`] and [`~trl_pafo.hub.upload.upload_model`].

    Returns:
        [`~huggingface_hub.CommitInfo`].

    Raises:
        ConfigError: If the run has no such model, or it is a teacher's.
        RunFolderError: If there is no such folder, or no finished run in it.
        HubError: If the Hub refuses, or cannot be reached.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is no folder. Name that of a run, or of a saved model.")
    model = folder
    if (folder / MANIFEST).is_file():
        model = _model_of(folder, method)
        results = folder / "results/results.json"
        if not _is_newer(model / CARD_NAME, results):  # else it is the run's, with what somebody wrote into it since
            write_cards(folder)
    elif method is not None:
        raise ConfigError(f"{folder} is no run of trl-pafo, so it has no methods. Leave out --method.")
    if model.resolve().parent.name == "teachers" and (model.resolve().parent.parent / MANIFEST).is_file():
        raise ConfigError(
            f"{model} is a teacher: it is trained on the pairs of one group alone, and is not pushed. Push the student."
        )
    files_to_push(model)
    repo_id = create_repo(hub_model_id, token=token, private=private)
    return upload_model(model, repo_id, token=token, revision=revision, message=message, base_model=base_model)


def _is_newer(path: Path, other: Path) -> bool:
    return path.is_file() and other.is_file() and path.stat().st_mtime_ns >= other.stat().st_mtime_ns


def _model_of(folder: Path, method: str | None) -> Path:
    found = {path.name: path for path in sorted((folder / "models").glob("*")) if path.name in TITLES}
    name = method or next((student for student in _STUDENTS if student in found), None)
    if name == "group_routed":
        raise ConfigError("The group-routed teachers are not one model. Push another method.")
    if name is None or name not in found:
        raise ConfigError(f"{folder} has no model {name or 'of PAFO'!r}; it has {', '.join(found) or 'none'}. Give --method.")
    return found[name]


def _counts(record: Record, split: str) -> list[GroupCount]:
    found = record.data.get(split, {})
    users = found.get("users", {})
    pairs = sorted(found.get("pairs", {}).items(), key=lambda item: (-item[1], item[0]))
    return [GroupCount(name, users.get(name), count) for name, count in pairs]


def _accuracies(record: Record, method: str) -> list[Accuracy]:
    summary = record.methods[method]
    rows = []
    for name in ("", *(group for group in record.groups if group not in record.results.get("not_evaluated", []))):
        entry, suffix = summary[f"accuracy/{name}" if name else "overall"], f"/{name}" if name else ""
        users, pairs = summary[f"num_users{suffix}"], summary[f"num_pairs{suffix}"]
        low, high = (entry[end] if is_known(entry[end]) else None for end in ("low", "high"))
        rows.append(Accuracy(name, users, pairs, entry["value"], low, high))
    return rows
