"""Rewards of pairs under saved models, and what they say about groups and users."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_pafo.data import checks
from trl_pafo.data.groups import largest_and_smallest
from trl_pafo.data.label_columns import LABEL_COLUMNS, normalize_columns
from trl_pafo.data.rendering import InputRenderer
from trl_pafo.data.sources.reading import open_dataset
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.evaluation.rewards import ScoredPairs, score_tokenized
from trl_pafo.metrics import compare, fairness_summary, pair_correctness
from trl_pafo.metrics.accuracy import encode_pairs
from trl_pafo.metrics.support import support_of_users
from trl_pafo.metrics.verdict import fewest_resamples
from trl_pafo.models.safe_loading import identity_of_folder, local_folder
from trl_pafo.models.scoring import RewardScorer
from trl_pafo.storage.files import json_ready, new_folder, write_text


def verdict_of(
    scored: ScoredPairs, reference: ScoredPairs, rows: Dataset, sources: Sequence[Any], why_same: str = "", seed: int = 0
) -> dict[str, Any]:
    """The verdict; that two models are one is said by their files, not by their rewards alone."""
    margins, of_reference = (pairs.chosen - pairs.rejected for pairs in (scored, reference))
    verdict = compare(
        pair_correctness(margins),
        pair_correctness(of_reference),
        _column(rows, "user"),
        _column(rows, "group"),
        margins=margins,
        reference_margins=of_reference,
        unit=_column(rows, "unit"),
        num_resamples=max(2000, fewest_resamples(max(1, len(set(_column(rows, "group") or ()))))),
        seed=seed,
    )
    folders = [local_folder(source) for source in sources if isinstance(source, str)]
    if verdict.verdict == "same" and len(folders) == 2 and len(set(map(identity_of_folder, folders))) == 1:
        verdict = replace(verdict, sentence=f"The same model{f': {why_same}' if why_same else ''}.")
    return asdict(verdict)


def summary_of(scored: ScoredPairs, rows: Dataset, num_resamples: int, seed: int = 0) -> dict[str, Any]:
    margins = scored.chosen - scored.rejected
    return fairness_summary(
        pair_correctness(margins),
        _column(rows, "user"),
        _column(rows, "group"),
        support=_column(rows, "support_rate") if "user" in rows.column_names else None,
        unit=_column(rows, "unit"),
        num_resamples=num_resamples,
        seed=seed,
    )


def write_rewards(out: Path, name: str, rows: Dataset, scored: ScoredPairs) -> None:
    """`<name>.jsonl` with user, group and raw rewards of each pair."""
    nobody: list[Any] = [None] * len(rows)
    columns = (
        _column(rows, "user") or nobody,
        _column(rows, "group") or nobody,
        scored.chosen.tolist(),
        scored.rejected.tolist(),
    )
    names = ("user", "group", "reward_chosen", "reward_rejected")
    lines = [json.dumps(dict(zip(names, values, strict=True))) + "\n" for values in zip(*columns, strict=True)]
    write_text(out / f"{name}.jsonl", "".join(lines))


def _column(rows: Dataset, name: str) -> list[Any] | None:
    return rows[name][:] if name in rows.column_names else None


def load_rows(name: str, split: str | None) -> Dataset:
    """Pairs to evaluate on: a folder of `trl-pafo prepare`, a file that [`open_dataset`] reads, or a Hub id.

    Raises:
        ConfigError: If a `split` is given for data that has none; else it is `"test"`.
        DataError: If there is no such split, or the data cannot be read.
    """
    given, split = split, split or "test"
    path = Path(name)
    if path.is_dir() and list(path.glob("*.parquet")):
        if not (path / f"{split}.parquet").exists():
            found = ", ".join(sorted(file.stem for file in path.glob("*.parquet")))
            raise DataError(f"{path} holds no {split}.parquet; it has the splits {found}. Give --dataset_split.")
        return open_dataset(path / f"{split}.parquet")
    rows = open_dataset(name)
    if isinstance(rows, Dataset):
        if given is not None:
            raise ConfigError(f"{name} has no splits, so --dataset_split {given} has no effect. Leave it out.")
        return rows
    if split not in rows:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(map(str, rows))}. Give --dataset_split.")
    return rows[split]


def evaluate_models(args: Any) -> dict[str, Any]:
    """Score the pairs under a model, and a reference, and summarize; `args` are the flags of `trl-pafo evaluate`.

    Of data without a column `group` nothing is said of groups, of data without a `user` nothing of users: each pair then counts as
    another person's.
    """
    if not args.model_name_or_path or not args.dataset_name:
        raise ConfigError("Give --model_name_or_path and --dataset_name.")
    for name, least in {"batch_size": 1, "num_resamples": 1}.items():
        if getattr(args, name) < least:
            raise ConfigError(f"`{name}` must be at least {least}, got {getattr(args, name)}.")
    if args.reference == args.model_name_or_path:
        raise ConfigError(f"--reference is the model itself ({args.reference}). Name another, or leave it out.")
    if not args.output_dir:
        return _evaluate_models(args, None)
    with new_folder(Path(args.output_dir)) as out:
        return _evaluate_models(args, out)


def _scorer_of(source: str, args: Any, is_reference: bool) -> RewardScorer:
    """Reads rows as the model was trained. A reference that was trained without histories is shown none."""
    limits = {"history_max_tokens": args.history_max_tokens, "history_fields": args.history_fields}
    scorer = RewardScorer.from_pretrained(source, bf16=args.bf16, num_history=args.num_history, **limits)
    trained = scorer.renderer.trained
    if is_reference and trained is not None and trained["num_history"] == 0:
        scorer.renderer = InputRenderer(scorer.tokenizer, 0)
    return scorer


def _evaluate_models(args: Any, out: Path | None) -> dict[str, Any]:
    rows = load_rows(args.dataset_name, args.dataset_split)
    what = f"The data {args.dataset_name}"
    checks.check_rows(rows, what)
    rows = normalize_columns(rows, what, LABEL_COLUMNS)
    user, group, support = (_column(rows, name) for name in ("user", "group", "support_rate"))
    encoded = encode_pairs(user, group, len(rows))  # one group a user
    if user is not None and support is not None:
        support_of_users(support, encoded)  # and one support rate
    sources = {"model": args.model_name_or_path, **({"reference": args.reference} if args.reference else {})}
    scorers = {name: _scorer_of(source, args, name == "reference") for name, source in sources.items()}
    # Rows that cannot be read raise before anything is scored.
    ids = {name: scorer.tokenize(rows, lambda row: f"{what}, row {row}") for name, scorer in scorers.items()}
    folders = [str(scorer.folder) for scorer in scorers.values()]
    scored = {
        name: score_tokenized(scorers.pop(name), ids.pop(name), batch_size=args.batch_size, desc=f"Pairs, {name}")
        for name in sources
    }
    majority, minority = (None, None) if group is None else largest_and_smallest(group, user)
    methods = {name: summary_of(s, rows, args.num_resamples) for name, s in scored.items()}
    verdicts = {}
    if args.reference:
        verdicts["model"] = verdict_of(scored["model"], scored["reference"], rows, folders)
    dataset = args.dataset_name + (f", split {args.dataset_split}" if args.dataset_split else "")
    results = {
        "dataset": dataset,
        "majority": majority,
        "minority": minority,
        "models": sources,
        "methods": methods,
        "verdicts": verdicts,
    }
    results = json_ready(results)
    if out is not None:
        out.mkdir()
        for name, pairs in scored.items():
            write_rewards(out, name, rows, pairs)
        write_text(out / "results.json", json.dumps(results, indent=2, default=str) + "\n")
    return results
