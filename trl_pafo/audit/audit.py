"""An audit: what a dataset holds, whom a shared model serves worse, what is noise, and whether PAFO can help."""

from dataclasses import asdict
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets

from trl_pafo.audit.counts import count_all, dropped_by_length, support_histogram
from trl_pafo.audit.headroom import probe_headroom, users_by_group
from trl_pafo.audit.noise import LabelNoise
from trl_pafo.audit.options import AuditArguments
from trl_pafo.audit.sampling import pair_features, sample_rows
from trl_pafo.audit.trend import accuracy_against_support
from trl_pafo.audit.verdict import findings, verdict_sentence
from trl_pafo.data import DEFAULT_NUM_HISTORY, checks
from trl_pafo.data.attaching import attach_history
from trl_pafo.data.history import HistoryCutter
from trl_pafo.data.rendering import InputRenderer
from trl_pafo.data.sources.registry import check_source, load_source
from trl_pafo.data.template import add_history_template
from trl_pafo.evaluation.rewards import pair_rewards
from trl_pafo.metrics import fairness_summary, pair_correctness
from trl_pafo.models.base_models import fit_lengths, load_tokenizer
from trl_pafo.models.scoring import check_reward_model, load_saved_tokenizer, local_folder
from trl_pafo.storage.files import json_ready
from trl_pafo.trainer.config import PAFOConfig

FORMAT = "trl-pafo audit 1"


def run_audit(args: AuditArguments) -> dict[str, Any]:
    """Audit a dataset, and a model if one is given; nothing is trained but probes.

    Args:
        args ([`~trl_pafo.audit.options.AuditArguments`]):
            The data and what to look at; `output_dir` is not written here.

    Returns:
        `dict`, ready for JSON: `verdict` (a sentence), `findings` (sentences), `data`, `settings`, `counts`, `support`, `length`,
        `noise`, `accuracy` (against support; `None` without model and probes) and `headroom` (`None` without probes).

    Raises:
        ConfigError, DataError, TeacherError: If an option, the data or the model cannot be used.
    """
    check_source(args)
    folder = None if args.model is None else str(local_folder(args.model))
    if folder is not None:
        check_reward_model(folder)
    tokenizer = _tokenizer(args, folder)
    settings: dict[str, Any] = {
        "num_history": args.num_history,
        "max_tokens": args.history_max_tokens,
        "fields": args.history_fields,
    }
    remembered = HistoryCutter.of(tokenizer if folder is None else load_saved_tokenizer(folder), **settings)
    num_history = DEFAULT_NUM_HISTORY if remembered.num_history is None else remembered.num_history
    cutter, max_length = _limits(args, folder, tokenizer, remembered, num_history)

    splits = load_source(args, context_pairs=max(1, num_history))
    for name, rows in splits.items():
        checks.check_pairs(rows, f"The {name} data")
    attached = _attach(splits, num_history)
    rows = concatenate_datasets([splits["train"], splits["test"]])
    if args.headroom:
        users_by_group(rows["user"][:], rows["group"][:])
    result: dict[str, Any] = {
        "format": FORMAT,
        "data": args.data_inputs(),
        "settings": {name: value for name, value in asdict(args).items() if name not in args.data_inputs()}
        | {"num_history": num_history},
        "counts": count_all(rows) | {"splits": {name: count_all(part)["groups"] for name, part in splits.items()}},
        "support": support_histogram(rows),
        "length": dropped_by_length(attached["train"], tokenizer, cutter, max_length)
        | {"tokenizer": args.tokenizer or args.model or args.embedding_model},
    }
    noise = LabelNoise(args, rows, args.num_resamples, args.seed)
    result["noise"] = noise.summary
    judged: tuple[Dataset, np.ndarray] | None = None
    result["headroom"] = None
    if args.headroom:
        sample = sample_rows(rows, args.headroom_pairs, args.seed)
        features = pair_features(
            sample, args.embedding_model, batch_size=2 * args.batch_size, desc=f"Features of {args.embedding_model}"
        )
        found = probe_headroom(
            features, num_history=num_history, folds=args.folds, repeats=args.repeats, seed=args.seed, desc="Probes"
        )
        judged = sample, found.pop("correct")["shared"]
        result["headroom"] = found | {"embedding_model": args.embedding_model, "num_pairs": len(sample)}
    if folder is not None:
        renderer = InputRenderer(load_saved_tokenizer(folder), **settings)
        judged = attached["test"], _model_correct(folder, renderer.render(attached["test"], "The test data"), args.batch_size)
    result["accuracy"] = None if judged is None else _accuracy(args, noise, *judged)
    result["verdict"] = verdict_sentence(result, args.min_gain)
    result["findings"] = findings(result)
    return json_ready(result)


def _tokenizer(args: AuditArguments, folder: str | None) -> Any:
    if args.tokenizer is None and folder is not None:
        return add_history_template(load_saved_tokenizer(folder))
    return load_tokenizer(args.tokenizer or args.embedding_model)


def _limits(
    args: AuditArguments, folder: str | None, tokenizer: Any, remembered: HistoryCutter, num_history: int
) -> tuple[HistoryCutter, int | None]:
    """What `prepare` and a training would show of a history, and the longest input that they would take."""
    known = {"history_max_tokens": remembered.max_tokens, "history_fields": remembered.fields, "num_history": num_history}
    config = PAFOConfig("audit", use_cpu=True, bf16=False, **{k: v for k, v in known.items() if v is not None})  # type: ignore[arg-type]
    if args.max_length is not None:
        config.max_length = args.max_length
    fit_lengths(config, args.tokenizer or folder or args.embedding_model)
    cutter = HistoryCutter(tokenizer, num_history, config.history_max_tokens, remembered.fields)
    return cutter, config.max_length


def _attach(splits: DatasetDict, num_history: int) -> dict[str, Dataset]:
    """Histories as `prepare` attaches them: training rows may show later pairs, test rows earlier ones alone."""
    attached = {}
    for name, rows in splits.items():
        test = name != "train"
        if "history" not in rows.column_names:
            rows = attach_history(rows, num_history, past_only=test, min_history=num_history if test else 1)
        attached[name] = rows
    return attached


def _model_correct(folder: str, rows: Dataset, batch_size: int) -> np.ndarray:
    return pair_correctness(np.subtract(*pair_rewards(folder, rows, batch_size=batch_size, desc="Test pairs, model")))


def _accuracy(args: AuditArguments, noise: LabelNoise, rows: Dataset, correct: np.ndarray) -> dict[str, Any]:
    ceiling = noise.ceiling_of(rows)
    how: dict[str, Any] = {"num_resamples": args.num_resamples, "seed": args.seed}
    trend = accuracy_against_support(correct, rows["user"][:], rows["support_rate"][:], ceiling, **how)
    summary = fairness_summary(correct, rows["user"][:], rows["group"][:], **how)
    groups = {}
    for name in sorted(set(rows["group"][:])):
        mine = np.asarray(rows["group"][:]) == name
        groups[name] = {"accuracy": summary[f"accuracy/{name}"], "users": summary[f"num_users/{name}"], "pairs": int(mine.sum())}
        if ceiling is not None:
            common = mine & ~np.isnan(ceiling)
            groups[name] |= {"common_pairs": int(common.sum())}
            if common.any():
                groups[name] |= {"ceiling": float(ceiling[common].mean()), "accuracy_there": float(correct[common].mean())}
    result = {
        "judge": "shared probe, cross-validated" if args.model is None else f"model {args.model}, on test pairs",
        "overall": summary["overall"],
        "groups": groups,
        "trend": trend,
        "trend_apart": noise.trend_apart(correct, rows),
    }
    if ceiling is not None and (~np.isnan(ceiling)).any():
        common = ~np.isnan(ceiling)
        result["common_pairs"] = {
            "pairs": int(common.sum()),
            "ceiling": float(ceiling[common].mean()),
            "accuracy": float(np.asarray(correct)[common].mean()),
        }
    return result
