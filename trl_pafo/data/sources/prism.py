"""PRISM: real people from many countries rate answers of several models in their own conversations.

Source of the data: Kirk et al. (2024), "The PRISM Alignment Dataset", `HannahRoseKirk/prism-alignment` on the Hub: texts
by people CC BY 4.0, answers of models CC BY-NC 4.0. Nothing of it is shipped. Groups are answers to its survey.
"""

import logging
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from trl_pafo.data.checks import kind_of
from trl_pafo.data.groups import ONE_GROUP
from trl_pafo.data.labels import as_label
from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.reading import open_dataset, read_records, rows_to_dataset, single_split, text_of
from trl_pafo.data.sources.splits import add_type_support, drop_users_without_history, split_people
from trl_pafo.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def load(data: DataArguments) -> DatasetDict:
    """Pairs of the answer that a person chose and another one of the same turn that the person rated lower.

    The prompt is the conversation so far, with the chosen answers in it. Turns without an answer that was rated lower are left out,
    as are test pairs whose prompt occurs in training, people without the answer that makes the group, and people with pairs on one
    prompt only. The rows are messages; `support_rate` is the share of the training people in the person's group.

    The data are a folder with `conversations.jsonl` and `survey.jsonl`, or the Hub id of the dataset. In `group_by`, a dot leads
    into nested fields, as in `"religion.simplified"`. Without `minority`, each value of the field is a group.

    Raises:
        ConfigError: If a value of `minority` does not occur, or there are fewer people than asked for.
        DataError: If a file is missing, a record has another form, or the survey has no such field.
    """
    path, minority, group_by = str(data.data_path), data.minority, data.group_by
    value_of = _survey_values(path, group_by) if group_by else defaultdict(lambda: ONE_GROUP)
    values = set(value_of.values())
    if unknown := sorted(set(minority or ()) - values):
        raise ConfigError(f"`minority` names {unknown}, but the values of {group_by} are {sorted(values)}.")
    # Conversations without a date stay in the order of the file.
    conversations = sorted(_records(path, "conversations"), key=lambda item: str(item[1].get("generated_datetime") or ""))
    rows: list[dict[str, Any]] = []
    num_skipped = 0
    for place, conversation in conversations:
        user = text_of(conversation, "user_id", place)
        if group_by and user not in value_of:
            continue
        group = value_of[user] if minority is None else "minority" if value_of[user] in minority else "majority"
        rng = random.Random(f"{data.population_seed} {conversation.get('conversation_id')} {user}")
        for pair in _pairs_of(conversation, place, rng):
            if pair is None:
                num_skipped += 1
            else:
                rows.append({**pair, "user": user, "group": group})
    if num_skipped:
        logger.info("%d turns are left out: no answer was rated lower than the chosen one.", num_skipped)
    if not rows:
        raise DataError(
            f"{path}: no conversation has a chosen answer, one that was rated lower, and a person with {group_by or 'pairs'}."
        )
    people = drop_users_without_history(rows_to_dataset(rows, path))
    splits = split_people(people, data)
    for split in splits.keys() - {"train"}:
        splits[split] = drop_users_without_history(splits[split])
    return add_type_support(splits)


def _records(path: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if Path(path).is_dir():
        yield from read_records(Path(path) / f"{name}.jsonl")
        return
    rows: Any = single_split(open_dataset(path, name=name), "train", path)
    for number, record in enumerate(rows):
        yield f"{path}, {name}, row {number}", record


def _survey_values(path: str, group_by: str) -> dict[str, str]:
    value_of: dict[str, str] = {}
    for place, record in _records(path, "survey"):
        value: Any = record
        for name in group_by.split("."):
            if not isinstance(value, dict) or name not in value:
                known = ", ".join(value) if isinstance(value, dict) else "no fields"
                raise DataError(f"{place}: the survey has no field {group_by!r}; at {name!r} it has {known}.")
            value = value[name]
        if isinstance(value, dict):
            raise DataError(f"{place}: the field {group_by!r} has parts; name one, such as {group_by}.{next(iter(value))}.")
        if (label := as_label(value)) is not None:
            value_of[text_of(record, "user_id", place)] = label
    return value_of


def _pairs_of(conversation: dict[str, Any], place: str, rng: random.Random) -> Iterator[dict[str, Any] | None]:
    """Each turn's pair, `None` for a turn without one."""
    turns: dict[int, list[dict[str, Any]]] = {}
    for message in conversation.get("conversation_history") or []:
        if not isinstance(message, dict) or not isinstance(message.get("turn"), int) or not {"role", "content"} <= set(message):
            raise DataError(
                f"{place}: `conversation_history` must hold messages with turn, role and content, got {message!r:.200}."
            )
        turns.setdefault(message["turn"], []).append(message)
    so_far: list[dict[str, str]] = []
    for turn in sorted(turns):
        asked, answers = (
            [message for message in turns[turn] if message["role"] == role and kind_of(message["content"]) == "text"]
            for role in ("user", "model")
        )
        chosen = next((answer for answer in answers if answer.get("if_chosen")), None)
        if not asked or chosen is None:
            # What follows would build on a turn that is not known.
            return
        so_far = [*so_far, {"role": "user", "content": asked[0]["content"]}]
        lower = [answer for answer in answers if _is_lower(answer, chosen)]
        if lower:
            rejected = rng.choice(lower)
            yield {
                "prompt": so_far,
                "chosen": [{"role": "assistant", "content": chosen["content"]}],
                "rejected": [{"role": "assistant", "content": rejected["content"]}],
            }
        else:
            yield None
        so_far = [*so_far, {"role": "assistant", "content": chosen["content"]}]


def _is_lower(answer: dict[str, Any], chosen: dict[str, Any]) -> bool:
    if answer.get("if_chosen") or answer["content"] == chosen["content"]:
        return False
    scores = (answer.get("score"), chosen.get("score"))
    return None in scores or float(scores[0]) < float(scores[1])  # type: ignore[arg-type]
