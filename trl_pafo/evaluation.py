"""Rewards of test pairs under every method of a run, and what they say about groups and users."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, load_dataset
from transformers import AutoTokenizer

from trl_pafo import checks
from trl_pafo.arguments import TITLES, RunArguments
from trl_pafo.config import PAFOConfig
from trl_pafo.errors import ConfigError, DataError, RunFolderError
from trl_pafo.history import HistoryCutter, add_history_template, render_history, without_history
from trl_pafo.history_rows import count_by_group
from trl_pafo.metrics import compare, fairness_summary, pair_correctness
from trl_pafo.models import longest_input
from trl_pafo.runs import write_text
from trl_pafo.scoring import load_reward_model, local_folder, pad_id_of, score_pairs, tokenize_response
from trl_pafo.sources.reading import open_dataset


def pair_rewards(
    folder: str | Path, rows: Dataset, *, batch_size: int = 32, bf16: bool = False, desc: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of the chosen and rejected responses under a saved model, raw, each of shape `(num_pairs,)`.

    Args:
        folder (`str` or `Path`):
            A saved reward model or adapter with its tokenizer.
        rows ([`~datasets.Dataset`]):
            Rows with `prompt`, `chosen`, `rejected`, optional `chat_template_kwargs`.
        batch_size (`int`, *optional*, defaults to `32`):
            Pairs in a forward pass.
        bf16 (`bool`, *optional*, defaults to `False`):
            Compute in bfloat16 mixed precision.
        desc (`str`, *optional*):
            Title of the progress bar; no bar without it.

    Raises:
        DataError: If a pair is longer than the model's positions.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if "chat_template_kwargs" in rows.column_names:
        add_history_template(tokenizer)  # a teacher that was trained elsewhere may have none
    ids: dict[str, list[list[int]]] = {"chosen": [], "rejected": []}
    for row in rows:
        for side, sequences in ids.items():
            sequences.append(tokenize_response(tokenizer, row.get("prompt"), row[side], row.get("chat_template_kwargs")))
    longest = longest_input(str(folder)) if not (Path(folder) / "adapter_config.json").exists() else None
    too_long = [i for i, pair in enumerate(zip(*ids.values(), strict=True)) if longest and max(map(len, pair)) > longest]
    if too_long:
        raise DataError(
            f"{len(too_long)} of {len(rows)} pairs are longer than the model's {longest} positions (by group: "
            f"{dict(count_by_group(rows.select(too_long)))}), the first in row {too_long[0]}. Lower `history_max_tokens`, or leave "
            "them out."
        )
    device = PartialState().device
    model = load_reward_model(folder).to(device)
    return score_pairs(
        model,
        ids["chosen"],
        ids["rejected"],
        pad_id_of(model.config, tokenizer),
        batch_size=2 * batch_size,
        device=device,
        autocast=lambda: torch.autocast(device.type, torch.bfloat16, enabled=bf16),
        desc=desc,
    )


def routed_rewards(teachers: Mapping[str, str], rows: Dataset, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rewards under the teacher of each row's group: the oracle, which needs the label at inference."""
    group = np.asarray(rows["group"])
    rewards = np.full((2, len(rows)), np.nan, dtype=np.float32)
    for name, folder in teachers.items():
        mine = np.flatnonzero(group == name)
        if len(mine):
            rewards[:, mine] = pair_rewards(folder, rows.select(mine), **kwargs)
    if np.isnan(rewards).any():
        missing = sorted(set(group) - set(teachers))
        raise DataError(
            f"The test data have groups without a teacher: {', '.join(missing)}. Add teachers, or leave out the oracle."
        )
    return rewards[0], rewards[1]


def majority_and_minority(train: Dataset) -> tuple[str, str]:
    """The groups with the most and the fewest training users."""
    users = dict(zip(train["user"], train["group"], strict=True))
    groups = sorted(set(users.values()), key=lambda g: (-sum(v == g for v in users.values()), g))
    return groups[0], groups[-1]


def evaluate_run(
    out: Path,
    models: Mapping[str, Any],
    test: Dataset,
    train: Dataset,
    run: RunArguments,
    args: PAFOConfig,
    seconds: Mapping[str, float],
    teacher_choice: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Score the test pairs under each method and write rewards, tables, verdicts and the picture to `out`."""
    majority, minority = majority_and_minority(train)
    out.mkdir(parents=True)
    correct: dict[str, np.ndarray] = {}
    summaries: dict[str, Any] = {}
    for method, source in models.items():
        rows = without_history(test) if method == "bradley_terry" else test
        how: dict[str, Any] = {
            "batch_size": args.per_device_eval_batch_size,
            "bf16": bool(args.bf16),
            "desc": f"Test pairs, {TITLES[method]}",
        }
        chosen, rejected = routed_rewards(source, rows, **how) if isinstance(source, dict) else pair_rewards(source, rows, **how)
        correct[method] = pair_correctness(chosen - rejected)
        summaries[method] = fairness_summary(
            correct[method], test["user"], test["group"], majority=majority, num_resamples=run.num_resamples, seed=args.seed
        )
        _write_rewards(out / f"{method}.jsonl", test["user"], test["group"], chosen, rejected)
    verdicts = {
        method: _verdict(correct[method], correct[run.reference], test["user"], test["group"], args.seed)
        for method in models
        if method != run.reference
    }
    results = {
        "majority": majority,
        "minority": minority,
        "reference": run.reference,
        "methods": summaries,
        "verdicts": verdicts,
        "teacher_choice": list(teacher_choice),
        "seconds": dict(seconds),
        "data": run.data_inputs(),
    }
    write_text(out / "results.json", json.dumps(results, indent=2, default=str) + "\n")
    write_report(out, results)


def _verdict(correct: np.ndarray, reference: np.ndarray, user: Any, group: Any, seed: int) -> dict[str, Any]:
    verdict = compare(correct, reference, user, group, seed=seed)
    return {"verdict": verdict.verdict, "differences": verdict.differences, "sentence": verdict.sentence}


def write_report(out: Path, results: dict[str, Any]) -> None:
    """The table as Markdown and the picture of majority against minority accuracy."""
    from trl_pafo.report.plots import plot_majority_minority
    from trl_pafo.report.tables import markdown_table

    majority, minority = results["majority"], results["minority"]
    named = {TITLES.get(method, method): summary for method, summary in results["methods"].items()}
    write_text(out / "results.md", markdown_table(named, majority, minority) + "\n\n" + verdict_lines(results) + "\n")
    points = [
        {"name": name, "majority": summary[f"accuracy/{majority}"], "minority": summary[f"accuracy/{minority}"]}
        for name, summary in named.items()
    ]
    reference = TITLES.get(results["reference"], results["reference"])
    plot_majority_minority(points, out / "majority_minority.png", reference=reference)


def verdict_lines(results: dict[str, Any]) -> str:
    """One line a method: the Pareto verdict against the reference. And what each group was distilled from."""
    reference = TITLES.get(results["reference"], results["reference"])
    lines = [f"{TITLES.get(m, m)} against {reference}: {verdict['sentence']}" for m, verdict in results["verdicts"].items()]
    return "\n".join(lines + [f"Distilled for {choice['sentence']}." for choice in results.get("teacher_choice", [])])


def _write_rewards(path: Path, user: Any, group: Any, chosen: np.ndarray, rejected: np.ndarray) -> None:
    lines = [
        json.dumps({"user": u, "group": g, "reward_chosen": a, "reward_rejected": b})
        for u, g, a, b in zip(user, group, chosen.tolist(), rejected.tolist(), strict=True)
    ]
    write_text(path, "\n".join(lines) + "\n")


def load_rows(name: str, split: str) -> Dataset:
    """Pairs to evaluate on: a folder of `trl-pafo prepare`, a file that [`open_dataset`] reads, or a Hub id."""
    path = Path(name)
    if path.is_dir() and list(path.glob("*.parquet")):
        if not (path / f"{split}.parquet").exists():
            found = ", ".join(sorted(file.stem for file in path.glob("*.parquet")))
            raise DataError(f"{path} holds no {split}.parquet; it has the splits {found}. Give --dataset_split.")
        return load_dataset("parquet", data_files=str(path / f"{split}.parquet"), split="train")
    rows = open_dataset(name)
    if isinstance(rows, Dataset):
        return rows
    if split not in rows:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(map(str, rows))}. Give --dataset_split.")
    return rows[split]


def evaluate_models(args: Any) -> dict[str, Any]:
    """Score the pairs under a model, and a reference, and summarise; `args` are the flags of `trl-pafo evaluate`.

    Rows without a `group` count as one group, rows without a `user` as one user each.
    """
    if not args.model_name_or_path or not args.dataset_name:
        raise ConfigError("Give --model_name_or_path and --dataset_name.")
    if args.output_dir and Path(args.output_dir).exists():
        raise RunFolderError(f"{args.output_dir} exists already. Choose another --output_dir; nothing is overwritten.")
    rows = load_rows(args.dataset_name, args.dataset_split)
    what = f"The data {args.dataset_name}"
    checks.check_columns(rows.column_names, ("chosen", "rejected"), what)
    checks.check_pairs(rows, what)
    user = rows["user"][:] if "user" in rows.column_names else list(range(len(rows)))
    group = rows["group"][:] if "group" in rows.column_names else ["all"] * len(rows)
    sources = {"model": args.model_name_or_path, **({"reference": args.reference} if args.reference else {})}
    rewards = {}
    for name, source in sources.items():
        folder = str(local_folder(source))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        overrides = {"num_history": args.num_history, "max_tokens": args.history_max_tokens, "fields": args.history_fields}
        ready = rows
        if "history" in rows.column_names:
            ready = render_history(rows, HistoryCutter.of(tokenizer, **overrides))
        rewards[name] = pair_rewards(folder, ready, batch_size=args.batch_size, bf16=args.bf16, desc=f"Pairs, {name}")
    correct = {name: pair_correctness(chosen - rejected) for name, (chosen, rejected) in rewards.items()}
    counts = Counter(dict(zip(user, group, strict=True)).values()).most_common()
    majority, minority = counts[0][0], counts[-1][0]
    methods = {
        name: fairness_summary(
            c, user, group, majority=majority if majority != minority else None, num_resamples=args.num_resamples, seed=args.seed
        )
        for name, c in correct.items()
    }
    verdicts = {}
    if args.reference:
        verdicts["model"] = _verdict(correct["model"], correct["reference"], user, group, args.seed)
    results = {"majority": majority, "minority": minority, "models": sources, "methods": methods, "verdicts": verdicts}
    if args.output_dir:
        out = Path(args.output_dir)
        out.mkdir(parents=True)
        for name, (chosen, rejected) in rewards.items():
            _write_rewards(out / f"{name}.jsonl", user, group, chosen, rejected)
        write_text(out / "results.json", json.dumps(results, indent=2, default=str) + "\n")
    return results
