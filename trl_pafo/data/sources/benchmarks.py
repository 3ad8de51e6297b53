"""Public benchmarks of personalized reward models, in their own schemas, to pairs for an evaluation. Nothing of them is shipped.

Personalized RewardBench: Ma et al. (2026), arXiv 2604.07343, `QiyaoMa/Personalized-RewardBench`. PersonalRewardBench: Ryan et al.
(2025), arXiv 2506.05598, `MichaelR207/prism_personalized_0125` and `MichaelR207/chatbot_arena_personalized_0125`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from trl_pafo.data.checks import kind_of
from trl_pafo.data.labels import as_label
from trl_pafo.data.messages import content_key, is_message
from trl_pafo.data.sources.reading import open_dataset, rows_to_dataset, text_of
from trl_pafo.errors import ConfigError, DataError

SUBSETS = ("Art_and_Entertainment", "Lifestyle_and_Personal_Development", "Society_and_Culture")
"""Configurations of Personalized RewardBench, and folders of its repository."""
_KNOWN = ("train", "val")
_SCHEMAS = {
    "personalized_rewardbench": ("id", "question", "profile", "chosen", "rejected"),
    "personal_rewardbench": ("user_id", "split", "context", "chosen", "rejected"),
}
BENCHMARKS = tuple(_SCHEMAS)
"""Names of the benchmarks that can be read."""


def load_benchmark(name: str, path: str | Path, split: str | None = None) -> Dataset:
    """The pairs of a public benchmark that a reward model is judged on.

    Args:
        name (`str`):
            `"personalized_rewardbench"`: a pair a row; its `group` is the subset, its `history` the questions of the profile, which have no
            answers. Who asked is not in the schema. Rubric and narrative are left out: they would tell the answer.
            `"personal_rewardbench"`: the pairs of each `user` whose row says `test`; its `history` are those that say `train` or `val`, the
            last row first, of whichever split of the repository, without those on the prompt of the pair.
        path (`str` or `Path`):
            Hub id, or a folder with the files of its repository; of PersonalRewardBench a file, too.
        split (`str`, *optional*, defaults to `"test"`):
            Split of the repository.

    Returns:
        [`~datasets.Dataset`]: With `prompt`, `chosen`, `rejected`, `history` and `group` or `user`, as
        [`~trl_pafo.data.sources.files.load_pairs`] takes it.

    Raises:
        ConfigError: If the benchmark is unknown.
        DataError: If the data cannot be read, or a row does not fit the schema; the message names it.
    """
    if name not in _SCHEMAS:
        raise ConfigError(f"Unknown benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}.")
    personalized = name == "personalized_rewardbench"
    found = list((_of_subsets if personalized else _of_users)(str(path), split or "test"))
    if not found:
        raise DataError(f"{path}: no row to be judged; the column `split` says 'test' in none. Give the data of {name}.")
    return rows_to_dataset(found, str(path))


def _of_subsets(path: str, split: str) -> Iterator[dict[str, Any]]:
    for subset in SUBSETS:
        folder = Path(path) / subset
        if Path(path).exists() and not folder.is_dir():
            raise DataError(f"{path} has no folder {subset}. Give a folder with those of the repository: {', '.join(SUBSETS)}.")
        opened = open_dataset(folder) if folder.is_dir() else open_dataset(path, name=subset)
        for place, row in _rows(opened, split, f"{path}, {subset}", "personalized_rewardbench"):
            profile = row["profile"]
            if not isinstance(profile, list) or not all(isinstance(past, dict) for past in profile):
                raise DataError(f"{place}: `profile` must be a list of objects with `text`, got {profile!r:.200}.")
            texts = {key: text_of(row, key, place) for key in ("question", "chosen", "rejected")}
            history = [{"prompt": text_of(past, "text", f"{place}, profile")} for past in profile]
            yield {"prompt": texts.pop("question"), **texts, "group": subset, "history": history}


def _of_users(path: str, split: str) -> Iterator[dict[str, Any]]:
    folder = Path(path) / "data"
    opened = open_dataset(folder if folder.is_dir() else path)
    past: dict[str, list[dict[str, Any]]] = {}
    judged = []
    others = [] if isinstance(opened, Dataset) else [str(name) for name in opened if not _is_of(str(name), split)]
    for part in (split, *others):  # whose rows are known stands in any of them
        for place, row in _rows(opened, part, path, "personal_rewardbench"):
            user, kind = as_label(row["user_id"]), row["split"]
            if user is None or kind not in (*_KNOWN, "test"):
                raise DataError(
                    f"{place}: needs a `user_id`, and a `split` that is train, val or test; got {user!r} and {kind!r}."
                )
            pair = {"prompt": _messages(row, "context", place)}
            pair |= {side: _messages(row, side, place) for side in ("chosen", "rejected")}
            if kind != "test":
                past.setdefault(user, []).append(pair)
            elif part == split:
                judged.append((user, pair))
    for user, pair in judged:
        history = [p for p in reversed(past.get(user, [])) if content_key(p["prompt"]) != content_key(pair["prompt"])]
        yield {**pair, "user": user, "history": history}


def _is_of(part: str, split: str) -> bool:
    """Whether a part of a repository is (a file of) this split: `test`, or `test-00000-of-00002`."""
    return part == split or part.startswith(f"{split}-")


def _rows(opened: Dataset | DatasetDict, split: str, what: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a split, which may be in several files, with their places."""
    parts = opened if isinstance(opened, dict) else {split: opened}
    chosen = [rows for part, rows in parts.items() if _is_of(str(part), split)]
    if not chosen:
        raise DataError(f"{what} has no split {split!r}; it has {', '.join(map(str, parts))}. Give --dataset_split.")
    number = 0
    for rows in chosen:
        if missing := [column for column in _SCHEMAS[name] if column not in rows.column_names]:
            raise DataError(
                f"{what} does not have the schema of {name}: {', '.join(missing)} is missing; its columns are {', '.join(rows.column_names)}."
            )
        for row in rows.select_columns([*_SCHEMAS[name]]):
            yield f"{what}, row {number}", row
            number += 1


def _messages(row: dict[str, Any], name: str, place: str) -> list[dict[str, str]]:
    """One message or several; the role `model`, PRISM's name for it, becomes `assistant`."""
    value = [row[name]] if is_message(row[name]) else row[name]
    if kind_of(value) != "messages":
        raise DataError(f"{place}: `{name}` must be a message with role and content, or a list of them, got {row[name]!r:.200}.")
    return [{"role": {"model": "assistant"}.get(m["role"], m["role"]), "content": m["content"]} for m in value]
