"""The models of a finished run: a card beside each, and one of them to the Hub."""

import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from trl_pafo.baselines.table import TRAINERS
from trl_pafo.errors import ConfigError, RunFolderError
from trl_pafo.evaluation.methods import OF_TEACHERS, STUDENTS, TITLES
from trl_pafo.metrics.verdict import is_known
from trl_pafo.models.card import CARD_NAME, FEWEST_USERS, PICTURE, Accuracy, Card, GroupCount, hides_groups, hub_ids
from trl_pafo.models.safe_loading import ADAPTER_CONFIG, has_tokenizer
from trl_pafo.models.upload import create_repo, files_to_push, upload_model
from trl_pafo.report.likes import likes_sentences
from trl_pafo.report.plain_words import plain_sentences
from trl_pafo.report.record import Record, read_record
from trl_pafo.report.results import MAJORITY_MINORITY
from trl_pafo.report.tables import over
from trl_pafo.storage.files import replacing, write_text
from trl_pafo.storage.run_folder import MANIFEST
from trl_pafo.trainer.model_card import cost_of, emissions_in, reward_model_card

_PICTURE = f"results/{MAJORITY_MINORITY}"
_OWN_DATA = ("files", "polis")
"""Sources of people's own data, of which a card quotes no word."""


def write_cards(folder: str | Path) -> list[Path]:
    """Write a README.md beside each model of a finished run, from its results; return the files.

    Raises:
        RunFolderError: If it is no finished run.
    """
    record = read_record(folder)
    written = []
    for method in record.methods:
        model = record.folder / "models" / method
        if has_tokenizer(model):  # the group-routed teachers are not one model, and neither are those of MaxMin-RLHF
            card = run_card(record, method)
            if card.picture:
                with replacing(model / PICTURE) as temporary:
                    shutil.copyfile(record.folder / _PICTURE, temporary)
            else:
                (model / PICTURE).unlink(missing_ok=True)
            write_text(model / CARD_NAME, card.render())
            written.append(model / CARD_NAME)
    return written


def run_card(record: Record, method: str) -> Card:
    """The card of one model of a run."""
    folder = record.folder / "models" / method
    options = record.training_of(method)
    data = record.results.get("data", {})
    is_distilled = method in STUDENTS and "instead" not in options
    groups, accuracies = _counts(record, "train"), _accuracies(record, method)
    hides = hides_groups(groups, accuracies)
    tells = method == record.student and not hides
    findings = []
    if verdict := record.results.get("verdicts", {}).get(method):
        sentence = verdict["sentence"]
        if hides and verdict["verdict"] != "same":  # differences and numbers of users would give it away
            sentence = f"{verdict['verdict']}; without numbers, since a group has fewer than {FEWEST_USERS} users."
        said = [" ".join(plain_sentences(record.results))] if tells else []
        findings = [*said, f"Against {record.title(str(record.reference))}: {sentence}"]
    likes = [] if hides else likes_sentences(record.likes, with_words=data.get("source") not in _OWN_DATA)
    how = over(next(iter(record.methods.values())))
    evaluated_on = "On the test pairs of the run, which no training of the run has seen."
    if is_distilled and record.has_given_teachers:
        evaluated_on += " Its teachers were given: what they have seen is not known."
    return reward_model_card(
        ("pafo" if is_distilled else "kept") if method in STUDENTS else method,
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        options,
        options.get("model_name_or_path"),
        (folder / ADAPTER_CONFIG).is_file(),
        TRAINERS[method].load().how_trained if method in TRAINERS else None,
        title=f"{record.title(method)} reward model",
        tags=("trl", "reward-trainer", *(("pafo",) if method in STUDENTS else ())),
        datasets=hub_ids([data.get("data_path")]),
        group_definition=" ".join([record.group_definition(numbers=not hides), *likes]),
        groups=groups,
        accuracies=accuracies,
        evaluated_on=f"{evaluated_on} Intervals come from a bootstrap over {how}, stratified by group; that of few is unknown.",
        eval_dataset=f"{data.get('source', 'preference pairs')} (test users of trl-pafo)",
        findings=findings,
        **_cost(record, method, is_distilled),
        picture=_in_words(record) if tells and (record.folder / _PICTURE).is_file() else None,
    )


def push_run(
    folder: str | Path, hub_model_id: str, *, method: str | None = None, private: bool | None = None, **commit: Any
) -> Any:
    """Push one model of a finished run, or a folder with a saved model: the model, its tokenizer and its card, nothing else.

    The repository, `name` or `namespace/name`, is made where it does not exist, private if its owner's settings or `private` say
    so. `method` is the model of the run, by default PAFO's. `commit` are `token`, `revision`, `message` and `base_model` of
    [`~trl_pafo.models.upload.upload_model`].

    Raises:
        ConfigError: If the run has no such model, or it is a teacher's.
        RunFolderError: If there is no such folder, or no finished run in it.
        HubError: If the folder holds no weights, the Hub refuses, or cannot be reached.
    """
    model = folder = Path(folder)
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder. Give the folder of a run or of a saved model.")
    if (folder / MANIFEST).is_file():
        model = _model_of(folder, method)
        if not (model / CARD_NAME).is_file():
            write_cards(folder)
    elif method is not None:
        raise ConfigError(f"{folder} is not a run of trl-pafo, so it has no methods. Leave out --method.")
    if any(above.name == "teachers" and (above.parent / MANIFEST).is_file() for above in model.resolve().parents):
        raise ConfigError(
            f"{model} is a teacher: it is trained on the pairs of one group alone, and is not pushed. Push the student."
        )
    files_to_push(model)  # before a repository is created for nothing
    repo_id = create_repo(hub_model_id, token=commit.get("token"), private=private)
    return upload_model(model, repo_id, **commit)


def _model_of(folder: Path, method: str | None) -> Path:
    found = {path.name: path for path in sorted((folder / "models").glob("*")) if path.name in TITLES}
    name = method or next((student for student in STUDENTS if student in found), None)
    if name in OF_TEACHERS or (name in found and not has_tokenizer(found[name])):  # such as those of MaxMin-RLHF
        raise ConfigError(f"{TITLES[name]}: these are several models, which are not pushed as one. Push another method.")
    if name is None or name not in found:
        raise ConfigError(f"{folder} has no model {name or 'of PAFO'!r}; it has {', '.join(found) or 'none'}. Give --method.")
    return found[name]


def _cost(record: Record, method: str, is_distilled: bool) -> dict[str, Any]:
    """What a card says of it: `cost` and `emissions`, those of the teachers with a student's."""
    name = method if is_distilled or method not in STUDENTS else "personalized_bt"  # whose copy it then is
    stage = record.stage_of(name)
    if "hardware" not in stage:  # of an earlier version
        return {}
    teachers = [done for name, done in record.stages.items() if name.startswith("teacher")] if is_distilled else []
    emissions = emissions_in(record.folder / done["output"] for done in (stage, *teachers))
    cost = cost_of(stage["seconds"], stage["hardware"], emissions, sum(done["seconds"] for done in teachers))
    return {"cost": cost, "emissions": emissions and emissions.grams}


def _in_words(record: Record) -> str:
    """The picture of a run's results, for those who do not see it."""
    sides = [record.group_title(str(record.results[role])) for role in ("majority", "minority")]
    return f"Accuracy on test pairs, {sides[0]} against {sides[1]}, with 95 % intervals: each method, and the path of personalized BT"


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
