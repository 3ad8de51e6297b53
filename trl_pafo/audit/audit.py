"""An audit: what a dataset holds, whom a shared model serves worse, what is noise, and whether PAFO can help."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from trl_pafo.audit.counts import count_all, dropped_by_length
from trl_pafo.audit.features import pair_features, sample_rows
from trl_pafo.audit.headroom import check_groups, probe_headroom
from trl_pafo.audit.noise import LabelNoise, mean_over_users
from trl_pafo.audit.options import AuditArguments
from trl_pafo.audit.pictures import PICTURES, draw_pictures
from trl_pafo.audit.text import findings, markdown_report, verdict_sentence
from trl_pafo.data import DEFAULT_NUM_HISTORY, checks
from trl_pafo.data.attaching import attach_history
from trl_pafo.data.history import HistoryCutter
from trl_pafo.data.rendering import InputRenderer
from trl_pafo.data.sources.registry import check_source, load_source
from trl_pafo.data.template import add_history_template
from trl_pafo.errors import RunFolderError
from trl_pafo.evaluation.rewards import pair_rewards
from trl_pafo.metrics import fairness_summary, pair_correctness
from trl_pafo.metrics.accuracy import FloatArray
from trl_pafo.models.base_models import fit_lengths, load_tokenizer
from trl_pafo.models.safe_loading import load_saved_tokenizer, local_folder
from trl_pafo.models.weights import check_reward_model
from trl_pafo.storage.files import json_ready, writing
from trl_pafo.storage.run_folder import write_text
from trl_pafo.trainer.config import PAFOConfig

_FILES = {"audit.json", "audit.md", *PICTURES}


def run_audit(args: AuditArguments) -> dict[str, Any]:
    """Audit a dataset, and a model if one is given; nothing is trained but probes.

    Args:
        args ([`AuditArguments`]):
            The data and what to look at; `output_dir` is not written here, see [`write_audit`].

    Returns:
        `dict`, ready for JSON: `verdict` (a sentence), `findings` (sentences), `data`, `settings`, `counts`, `length`, `noise`,
        `accuracy` by group (`None` without model and probes) and `headroom` (`None` without probes).

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
    for name, part in splits.items():
        checks.check_pairs(part, f"The {name} data")
    rows = concatenate_datasets([splits["train"], splits["test"]])
    if args.headroom:
        check_groups(rows["user"][:], rows["group"][:])
    noise = LabelNoise(args, rows, args.seed)
    result: dict[str, Any] = {
        "data": args.data_inputs(),
        "settings": {name: value for name, value in asdict(args).items() if name not in args.data_inputs()}
        | {"num_history": num_history},
        "counts": count_all(rows),
        "length": dropped_by_length(_with_history(splits["train"], num_history, test=False), tokenizer, cutter, max_length)
        | {"tokenizer": args.tokenizer or args.model or args.embedding_model},
        "noise": noise.summary,
        "accuracy": None,
        "headroom": None,
    }
    if args.headroom:
        sample = sample_rows(rows, args.headroom_pairs, args.seed)
        features = pair_features(
            sample, args.embedding_model, batch_size=2 * args.batch_size, desc=f"Features of {args.embedding_model}"
        )
        found = probe_headroom(features, num_history=num_history, seed=args.seed, desc="Probes")
        correct = found.pop("correct")["shared"]
        result["headroom"] = found | {"embedding_model": args.embedding_model, "num_pairs": len(sample)}
        result["accuracy"] = _accuracy("shared probe, cross-validated", noise, sample, correct, args.seed)
    if folder is not None:
        test = _with_history(splits["test"], num_history, test=True)
        ready = InputRenderer(load_saved_tokenizer(folder), **settings).render(test, "The test data")
        rewards = pair_rewards(folder, ready, batch_size=args.batch_size, desc="Test pairs, model")
        correct = pair_correctness(np.subtract(*rewards))
        result["accuracy"] = _accuracy(f"model {args.model}, on test pairs", noise, test, correct, args.seed)
    result["verdict"] = verdict_sentence(result)
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
    return HistoryCutter(tokenizer, num_history, config.history_max_tokens, remembered.fields), config.max_length


def _with_history(rows: Dataset, num_history: int, test: bool) -> Dataset:
    """Histories as `prepare` attaches them: training rows may show later pairs, test rows earlier ones alone."""
    if "history" in rows.column_names:
        return rows
    return attach_history(rows, num_history, past_only=test, min_history=num_history if test else 1)


def _accuracy(judge: str, noise: LabelNoise, rows: Dataset, correct: FloatArray, seed: int) -> dict[str, Any]:
    """Accuracy by group, with the noise ceiling where others judged the same pairs, and its rank correlation with support."""
    user, group, ceiling = rows["user"][:], rows["group"][:], noise.ceiling_of(rows)
    summary = fairness_summary(correct, user, group, support=rows["support_rate"][:], seed=seed)
    groups = {}
    for name in sorted(set(group)):
        mine = np.asarray(group) == name
        common = np.flatnonzero(mine & ~np.isnan(ceiling))
        groups[name] = {
            "users": summary[f"num_users/{name}"],
            "pairs": int(mine.sum()),
            "accuracy": summary[f"accuracy/{name}"],
            "common_pairs": len(common),
        }
        if len(common):
            groups[name] |= {
                "ceiling": mean_over_users(ceiling[common], [user[row] for row in common], seed),
                "accuracy_there": float(correct[common].mean()),
            }
    return {
        "judge": judge,
        "overall": summary["overall"],
        "groups": groups,
        "support_spearman": summary["support_spearman"],
        "support_is_agreement": noise.measured,
    }


def check_output(folder: str | Path) -> Path:
    """The folder, if an audit may be written there: new, empty, or holding an earlier audit and nothing else.

    Raises:
        RunFolderError: If it holds something else.
    """
    out = Path(folder)
    found = {entry.name for entry in out.iterdir()} if out.is_dir() else {out.name} if out.exists() else set()
    if found - _FILES:
        raise RunFolderError(
            f"{out} holds something else than an audit ({min(found - _FILES)}). Choose another --output_dir; nothing is overwritten."
        )
    return out


def write_audit(result: dict[str, Any], folder: str | Path) -> Path:
    """Write audit.json, audit.md and the pictures; those of an earlier audit there are replaced, each at once.

    Raises:
        RunFolderError: If the folder holds something else, or the disk is full.
    """
    out = check_output(folder)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        pictures = draw_pictures(result, out)
        write_text(out / "audit.md", markdown_report(result, pictures))
        write_text(out / "audit.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
        for name in set(PICTURES) - set(pictures):
            (out / name).unlink(missing_ok=True)
    return out
