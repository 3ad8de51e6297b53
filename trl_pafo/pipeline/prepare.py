"""The data of a run: pairs of a source with groups and histories, held-out prompts, and the files that trainers read."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_from_disk
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from trl_pafo.data import DEFAULT_NUM_HISTORY, checks
from trl_pafo.data.attaching import attach_history
from trl_pafo.data.groups import count_by_group
from trl_pafo.data.history import HistoryCutter, render_history
from trl_pafo.data.people import ABOUT, crossing_sentences, people_of, sureness_sentence, write_people
from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.registry import load_source
from trl_pafo.data.sources.splits import check_test_groups, facts_of, hold_out_prompts
from trl_pafo.data.tokenization import ID_COLUMNS, sequence_lengths, tokenize_pairs, tokenize_row
from trl_pafo.evaluation.inferred_groups import infer_groups
from trl_pafo.evaluation.tastes import tastes_sentences
from trl_pafo.storage.files import write_text
from trl_pafo.trainer.config import PAFOConfig

DATA_FORMAT = 5
"""An input of every run: another number where the same options and files would give other rows."""

LENGTHS = "lengths.npz"
"""File in the data of a run: tokens of the longer sequence of each pair, an array a split."""

_TEXT_COLUMNS = ("prompt", "chosen", "rejected", "chat_template_kwargs")


def prepare(
    data: DataArguments,
    args: PAFOConfig,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    with_lengths: bool = False,
    check: Callable[[Dataset], None] = lambda train: None,
) -> None:
    """Write `train.parquet`, `validation.parquet` and `test.parquet` with histories, the chat template, a summary, and `groups.csv`.

    Validation pairs are those of the source's validation users; or, if it has none, the training users' pairs on some prompts, which no
    model is trained on, though a training row may show one as past.

    The rows have TRL's preference columns (conversational), `chat_template_kwargs` with the history as the model will see it,
    the complete `history`, `user`, `group`, `support_rate`: `trl reward --dataset_name FOLDER` trains on them as they are.

    `with_lengths` adds their [`longest_sequences`], so that a run which is started again need not tokenize them to check them. `check` is
    called with the training pairs as soon as they are read, unless their groups are still to be found.
    """
    folder.mkdir(parents=True)
    num_history = DEFAULT_NUM_HISTORY if args.num_history is None else args.num_history
    splits = load_source(data, context_pairs=max(1, num_history))
    if not data.infer_groups:
        check(splits["train"])
    # Each pair stands in the histories of others, several times over: on disk, not in memory.
    with TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as scratch:
        summary, facts, people = _write_splits(splits, num_history, data, args, tokenizer, folder, Path(scratch), with_lengths)
    write_text(folder / "chat_template.jinja", tokenizer.chat_template)
    # Such as a group of one user, whom training has.
    untested = sorted(set(summary["train"]["users"]) - set(summary["test"]["users"]))
    write_text(folder / "summary.json", json.dumps(summary | facts | {"not_evaluated": untested}, indent=2) + "\n")
    for name, counts in summary.items():
        parts = [f"{group}: {counts['users'][group]} users, {n} pairs" for group, n in sorted(counts["pairs"].items())]
        print(f"    {name}: {'; '.join(parts)}", flush=True)
    if untested:
        print(f"    no test pairs, so not evaluated: {', '.join(untested)}", flush=True)
    for sentence in (sureness_sentence(people, facts["groups"]), *crossing_sentences(people)):
        print(f"    {sentence}", flush=True)
    write_people(people, folder)


def _write_splits(
    splits: DatasetDict,
    num_history: int,
    data: DataArguments,
    args: PAFOConfig,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    scratch: Path,
    with_lengths: bool,
) -> tuple[dict[str, dict[str, dict[str, int]]], dict[str, str], pd.DataFrame]:
    """Pairs and users of each split and group; where the `groups` come from, and what is held out (`hold_out`); and the people.

    Groups come from `"support"` rates, `"agreement"`, the `"data"`, the users' `"pairs"`, or the `"training pairs"` and, for test users,
    the data.
    """
    facts = {"groups": "data", "hold_out": "users_and_prompts"} | facts_of(splits["train"])
    missing = "keep" if data.min_pairs == 1 else "drop"
    cutter = HistoryCutter(tokenizer, num_history, args.history_max_tokens, args.history_fields)
    prepared = {}
    for name in list(splits):
        splits.pop(name).save_to_disk(scratch / name)
        rows = load_from_disk(scratch / name)
        checks.check_pairs(rows, f"The {name} data")
        # A training row may look at all other pairs of its user; a test row at earlier ones alone, as in use, and at k of them.
        if "history" not in rows.column_names:
            test = name != "train"
            rows = attach_history(rows, num_history, past_only=test, min_history=num_history if test else 1, missing=missing)
        elif num_history:
            checks.check_history(rows, f"The {name} data", may_lack=missing == "keep")
        rendered = render_history(rows, cutter, args.dataset_num_proc)
        prepared[name] = concatenate_datasets([rendered, rows.select_columns(["history"])], axis=1)
    for name in prepared.keys() - {"train"}:
        known = name == "validation" and set(prepared["train"]["user"][:]) & set(prepared[name]["user"][:])
        checks.check_apart(prepared["train"], prepared[name], "prompts" if known else facts["hold_out"])
    check_test_groups(DatasetDict(prepared))
    if "validation" not in prepared:  # the source has no users to spare
        train, validation = hold_out_prompts(prepared["train"], data.validation_share, data.population_seed)
        prepared |= {"train": train, **({"validation": validation} if len(validation) else {})}
    prepared = {name: prepared[name] for name in ("train", "validation", "test") if name in prepared}
    posterior: dict[str, float] = {}
    if data.infer_groups:
        prepared, tastes, named, posterior = infer_groups(prepared, data.infer_groups, data.population_seed)
        facts["groups"] = "training pairs" if named else "pairs"
        for sentence in tastes_sentences(tastes.summary()):
            print(f"    {sentence}", flush=True)
    people, summary = people_of(prepared, posterior), {}
    for name, rows in prepared.items():
        shown = rows.remove_columns([ABOUT] if ABOUT in rows.column_names else [])
        # Chunks that content defines are for uploads, and where the disk is full, pyarrow would end the process without a word.
        shown.to_parquet(folder / f"{name}.parquet", use_content_defined_chunking=False)
        users = Counter(dict(zip(rows["user"][:], rows["group"][:], strict=True)).values())
        summary[name] = {"pairs": dict(count_by_group(rows)), "users": dict(users)}
    if with_lengths:
        lengths: dict[str, Any] = {name: longest_sequences(rows, tokenizer) for name, rows in prepared.items()}
        np.savez(folder / LENGTHS, allow_pickle=False, **lengths)
    return summary, facts, people


def load_prepared(folder: Path) -> DatasetDict:
    """What [`prepare`] wrote."""
    paths = {name: folder / f"{name}.parquet" for name in ("train", "validation", "test")}
    files = {name: str(path) for name, path in paths.items() if path.exists()}
    return load_dataset("parquet", data_files=files, cache_dir=str(folder.parent / ".datasets"))


def longest_sequences(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """Tokens of the longer sequence of each pair, as trainings and evaluation read it."""
    texts = rows.select_columns([name for name in _TEXT_COLUMNS if name in rows.column_names])
    tokenized = tokenize_pairs(texts, tokenizer, title="given")
    if ID_COLUMNS[0] in tokenized.column_names:
        return sequence_lengths(tokenized).max(axis=1)
    return np.array(
        [max(len(tokenize_row(tokenizer, row, side)) for side in checks.PAIR_COLUMNS) for row in texts], dtype=np.int64
    )
