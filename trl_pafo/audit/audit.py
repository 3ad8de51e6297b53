"""An audit: what a dataset holds, whom a shared model serves worse, what is noise, and whether PAFO can help."""

import json
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets
from numpy.typing import NDArray

from trl_pafo.audit.counts import count_all
from trl_pafo.audit.features import pair_features, sample_rows
from trl_pafo.audit.noise import LabelNoise, mean_over_users
from trl_pafo.audit.options import AuditArguments
from trl_pafo.audit.probes import PairFeatures, check_groups, probe_front
from trl_pafo.audit.text import findings, markdown_report, verdict_sentence
from trl_pafo.data import checks
from trl_pafo.data.groups import largest_and_smallest
from trl_pafo.data.sources.registry import check_source, load_source
from trl_pafo.data.sources.splits import in_one_group
from trl_pafo.errors import DataError, RunFolderError
from trl_pafo.evaluation.tastes import adjusted_rand, find_tastes, own_head_gains
from trl_pafo.metrics import fairness_summary
from trl_pafo.metrics.accuracy import FloatArray, IntArray
from trl_pafo.models.base_models import load_tokenizer
from trl_pafo.plotting import write_png
from trl_pafo.report.front import draw_front
from trl_pafo.storage.files import json_ready, write_text

FRONT = "front.png"
_FILES = {"audit.json", "audit.md", FRONT}


def run_audit(args: AuditArguments) -> dict[str, Any]:
    """Audit a dataset; nothing is trained but probes.

    Args:
        args ([`AuditArguments`]):
            The data and what to look at; `output_dir` is not written here, see [`write_audit`].

    Returns:
        `dict`, ready for JSON: `verdict` (a sentence), `findings` (sentences), `data`, `settings`, `counts`, `noise`,
        `accuracy` of the shared probe by group and the predicted `front` (both `None` without probes, or with one group), `tastes`
        (`None` without probes).

    Raises:
        ConfigError, DataError: If an option or the data cannot be used.
    """
    check_source(args)
    if args.probes:
        load_tokenizer(args.embedding_model)  # a model that is not there is an error before the data are read
    splits = load_source(args, context_pairs=max(1, args.num_history))
    for name, part in splits.items():
        checks.check_pairs(part, f"The {name} data")
    if args.infer_groups:
        splits = DatasetDict({name: in_one_group(part) for name, part in splits.items()})
    rows = concatenate_datasets([splits["train"], splits["test"]])
    one_group = len(rows.unique("group")) == 1
    if args.probes and not one_group:
        check_groups(rows["user"][:], rows["group"][:])
    noise = LabelNoise(args, rows, args.seed)
    result: dict[str, Any] = {
        "data": args.data_inputs(),
        "settings": {name: value for name, value in asdict(args).items() if name not in args.data_inputs()},
        "counts": count_all(rows),
        "noise": noise.summary,
        "accuracy": None,
        "front": None,
        "tastes": None,
    }
    if args.probes:
        sample = sample_rows(rows, args.probe_pairs, args.seed)
        title = f"Features of {args.embedding_model}"
        features = pair_features(sample, args.embedding_model, desc=title)
        if not one_group:
            found = probe_front(features, num_history=args.num_history, seed=args.seed, desc="Probes")
            result["accuracy"] = _accuracy(noise, sample, found.pop("correct"), args.seed)
            majority, minority = largest_and_smallest(rows["group"], rows["user"])
            result["front"] = found | {"majority": majority, "minority": minority}
            result["front"] |= {"embedding_model": args.embedding_model, "num_pairs": len(sample)}
        result["tastes"] = _tastes(noise, sample, features, args.seed)
    result["verdict"] = verdict_sentence(result)
    result["findings"] = findings(result)
    return json_ready(result)


def _tastes(noise: LabelNoise, rows: Dataset, pairs: PairFeatures, seed: int) -> dict[str, Any]:
    """Groups that the pairs show by themselves; and what heads of their own gain for the groups that are given, under `given`."""
    prompts = noise.keys_of(rows)
    differences = pairs.differences[: len(rows)]
    tastes = find_tastes(differences, pairs.user, prompts, seed=seed, desc="Groups")
    found: dict[str, Any] = tastes.summary() | {"given": {}, "adjusted_rand": None}
    given_of = dict(zip(pairs.user, pairs.group, strict=True))
    names = sorted(set(pairs.group), key=lambda name: -Counter(given_of.values())[name])
    if len(names) < 2:
        return found
    group = np.array([names.index(given_of[user]) for user in tastes.users])

    def assign(known: NDArray[np.bool_]) -> IntArray:
        if noise.minority_share is None:
            return group
        return noise.low_support(tastes.users, {prompts[row] for row in tastes.rows[~known]})

    with suppress(DataError):  # too few votes for support rates without those on held-out prompts
        found["given"] = own_head_gains(tastes.pairs, names, assign, tastes.shared, seed)
    group_of = tastes.assign(differences, pairs.user)
    found["adjusted_rand"] = adjusted_rand([group_of[user] for user in given_of], list(given_of.values()))
    return found


def _accuracy(noise: LabelNoise, rows: Dataset, correct: FloatArray, seed: int) -> dict[str, Any]:
    """Accuracy by group, with the noise ceiling where others judged the same pairs, and its rank correlation with support."""
    user, group, ceiling = rows["user"][:], rows["group"][:], noise.ceiling_of(rows)
    summary = fairness_summary(correct, user, group, support=rows["support_rate"][:], seed=seed)
    groups = {}
    for name in sorted(set(group)):
        common = np.flatnonzero((np.asarray(group) == name) & ~np.isnan(ceiling))
        groups[name] = {
            "users": summary[f"num_users/{name}"],
            "pairs": summary[f"num_pairs/{name}"],
            "accuracy": summary[f"accuracy/{name}"],
            "common_pairs": len(common),
        }
        if len(common):
            groups[name] |= {
                "ceiling": mean_over_users(ceiling[common], [user[row] for row in common], seed),
                "accuracy_there": float(correct[common].mean()),
            }
    return {
        "groups": groups,
        "overall": summary["overall"],
        "support_spearman": summary["support_spearman"],
        "support_is_agreement": noise.minority_share is not None,
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
            f"{out} holds files that are not of an audit ({min(found - _FILES)}). Choose another --output_dir; nothing "
            "is overwritten."
        )
    return out


def write_audit(result: dict[str, Any], folder: str | Path) -> Path:
    """Write audit.json, audit.md and, where there is a front, its picture; those of an earlier audit there are replaced, each at once.

    Raises:
        RunFolderError: If the folder holds something else.
    """
    out = check_output(folder)
    out.mkdir(parents=True, exist_ok=True)
    front = None if result["front"] is None else draw_front(result["front"])
    if front is None:
        (out / FRONT).unlink(missing_ok=True)
    else:
        write_png(front, out / FRONT)
    picture = "" if front is None else f"\n![front]({FRONT})\n"
    write_text(out / "audit.md", markdown_report(result) + picture)
    write_text(out / "audit.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return out
