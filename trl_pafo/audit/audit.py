"""An audit: what a dataset holds, whom a shared model serves worse, what is noise, and whether PAFO can help."""

import json
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
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
from trl_pafo.data.history import reads_history
from trl_pafo.data.people import GROUPS, crossing_sentences, people_of, sureness_sentence, write_people
from trl_pafo.data.rendering import InputRenderer
from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.judgments import REWARDS
from trl_pafo.data.sources.registry import SOURCES, check_source, load_source
from trl_pafo.data.sources.splits import facts_of, in_one_group
from trl_pafo.errors import DataError, RunFolderError
from trl_pafo.evaluation.reward_sources import check_models, name_sources, score_sources
from trl_pafo.evaluation.tastes import adjusted_rand, find_tastes, own_head_gains
from trl_pafo.metrics import fairness_summary, pair_correctness
from trl_pafo.metrics.accuracy import FloatArray, IntArray
from trl_pafo.metrics.plotting import write_png
from trl_pafo.models.base_models import load_tokenizer
from trl_pafo.models.scoring import RewardScorer
from trl_pafo.report.front import draw_front
from trl_pafo.report.people import draw_people
from trl_pafo.report.record import group_definition
from trl_pafo.storage.files import check_place, json_ready, write_text

PICTURES = {"front": "front.png", "groups": "groups.png"}
_FILES = {"audit.json", "audit.md", GROUPS, *PICTURES.values()}


def run_audit(args: AuditArguments, processes: PartialState | None = None) -> dict[str, Any]:
    """Audit a dataset; nothing is trained but probes.

    Args:
        args ([`AuditArguments`]):
            The data and what to look at; `output_dir` is not written here, see [`write_audit`].
        processes ([`~accelerate.PartialState`], *optional*):
            All of them call this with the same arguments, and share the forward passes.

    Returns:
        `dict`: `verdict` (a sentence), `findings` (sentences), `data`, `settings`, `counts`, `noise`, `accuracy` of the shared probe by
        group, the same for the reward models that are given (`models`), and the predicted `front` (both `None` without probes, or with one group), `tastes` (`None` without probes), `groups_from`
        and `groups` (sentences: how they were made, how sure they are, who is in them), all ready for JSON; and `people`, a row a user.

    Raises:
        ConfigError, DataError: If an option, a model or the data cannot be used.
    """
    check_source(args)
    models = args.sources()
    if models:  # a model that is not there is an error before the data are read
        check_models(models)
    if args.probes:
        load_tokenizer(args.embedding_model)
    splits = load_source(_whole(args), context_pairs=max(1, args.num_history))
    if args.source == "files" and "validation" in splits:  # given with the data
        splits["train"] = concatenate_datasets([splits["train"], splits.pop("validation")])
    for name, part in splits.items():
        checks.check_pairs(part, f"The {name} data")
    if args.infer_groups:
        splits = DatasetDict({name: in_one_group(part) for name, part in splits.items()})
    groups_from = "all pairs" if args.infer_groups else facts_of(splits["train"]).get("groups", "data")
    rows = concatenate_datasets([splits["train"], splits["test"]])
    people = people_of({name: splits[name] for name in ("train", "test")})
    one_group = len(rows.unique("group")) == 1
    if args.probes and not one_group:
        check_groups(rows["user"][:], rows["group"][:])
    noise = LabelNoise(args, rows, args.seed)
    result: dict[str, Any] = {
        "data": args.data_inputs(),
        "settings": {name: value for name, value in asdict(args).items() if name not in args.data_inputs()},
        "counts": count_all(rows, people),
        "noise": noise.summary,
        "models": _models(args, models, noise, rows, processes),
        "accuracy": None,
        "front": None,
        "tastes": None,
    }
    if args.probes:
        sample = sample_rows(rows, args.probe_pairs, args.seed)
        title = f"Features of {args.embedding_model}"
        features = pair_features(sample, args.embedding_model, desc=title, processes=processes)
        if not one_group:
            found = probe_front(features, num_history=args.num_history, seed=args.seed, desc="Probes")
            result["accuracy"] = accuracy_of(noise, sample, found.pop("correct"), args.seed)
            majority, minority = largest_and_smallest(rows["group"], rows["user"])
            result["front"] = found | {"majority": majority, "minority": minority}
            result["front"] |= {"embedding_model": args.embedding_model, "num_pairs": len(sample)}
        result["tastes"], found_of = _tastes(noise, sample, features, args.seed)
        if args.infer_groups:
            unseen = (None, np.nan)
            people["group"], people["posterior"] = zip(*(found_of.get(user, unseen) for user in people["user"]), strict=True)
            people["support_rate"] = np.nan
    result["groups_from"] = groups_from
    result["groups"] = [
        group_definition(result["data"], groups_from),
        sureness_sentence(people, groups_from),
        *(
            [f"{n:,} users are not among the pairs of the probes, and have no group."]
            if (n := people["group"].isna().sum())
            else []
        ),
        *crossing_sentences(people),
    ]
    result["verdict"] = verdict_sentence(result)
    result["findings"] = findings(result)
    return json_ready(result) | {"people": people}


def _whole(args: AuditArguments) -> DataArguments:
    """The data of which nobody is held out, as nothing is trained that could be chosen by them. Files hold out no more than the split `validation`
    that they bring, which is put back; where users are made, none is missing.
    """
    if args.source == "files" or "minority_ratio" in SOURCES[args.source]:
        return args
    given = {field.name: getattr(args, field.name) for field in fields(DataArguments)}
    return DataArguments(**given | {"validation_share": 0.0})


def _tastes(
    noise: LabelNoise, rows: Dataset, pairs: PairFeatures, seed: int
) -> tuple[dict[str, Any], dict[str, tuple[str, float]]]:
    """Groups that the pairs show by themselves; and what heads of their own gain for the groups that are given, under `given`.

    Beside it, the found group of each user and its posterior.
    """
    prompts = noise.keys_of(rows)
    differences = pairs.differences[: len(rows)]
    tastes = find_tastes(differences, pairs.user, prompts, seed=seed, desc="Groups")
    found: dict[str, Any] = tastes.summary() | {"given": {}, "adjusted_rand": None}
    given_of = dict(zip(pairs.user, pairs.group, strict=True))
    names = sorted(set(pairs.group), key=lambda name: -Counter(given_of.values())[name])
    group_of = tastes.assign(differences, pairs.user)
    if len(names) < 2:
        return found, group_of
    group = np.array([names.index(given_of[user]) for user in tastes.users])

    def assign(known: NDArray[np.bool_]) -> IntArray:
        if noise.minority_share is None:
            return group
        return noise.low_support(tastes.users, {prompts[row] for row in tastes.rows[~known]})

    with suppress(DataError):  # too few votes for support rates without those on held-out prompts
        found["given"] = own_head_gains(tastes.pairs, names, assign, tastes.shared, seed)
    found["adjusted_rand"] = adjusted_rand([group_of[user][0] for user in given_of], list(given_of.values()))
    return found, group_of


def _models(
    args: AuditArguments, models: list[Any], noise: LabelNoise, rows: Dataset, processes: PartialState | None
) -> dict[str, Any]:
    """The accuracy of each reward model that is given, on all pairs."""
    if not models:
        return {}
    num_in_table = len(rows[REWARDS][0]) if REWARDS in rows.column_names else 0
    sources, _ = name_sources(models, num_in_table=num_in_table)

    def scorer_of(source: str) -> RewardScorer:
        scorer = RewardScorer.from_pretrained(source, bf16=args.bf16)
        if not reads_history(scorer.tokenizer):  # it is shown none of the audit's own
            scorer.renderer = InputRenderer(scorer.tokenizer, 0)
        return scorer

    scored, _ = score_sources(sources, rows, "The data", scorer_of, args.batch_size, processes)
    margins = {name: pairs.chosen - pairs.rejected for name, pairs in scored.items()}
    return {name: accuracy_of(noise, rows, pair_correctness(margin), args.seed) for name, margin in margins.items()}


def accuracy_of(noise: LabelNoise, rows: Dataset, correct: FloatArray, seed: int) -> dict[str, Any]:
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
    check_place(out)
    return out


def write_audit(result: dict[str, Any], folder: str | Path) -> Path:
    """Write audit.json, audit.md, groups.csv and the pictures that there are; those of an earlier audit are replaced, each at once.

    Raises:
        RunFolderError: If the folder holds something else.
    """
    out = check_output(folder)
    out.mkdir(parents=True, exist_ok=True)
    front = None if result["front"] is None else draw_front(result["front"])
    figures, shown = {"front": front, "groups": draw_people(result["people"], result["groups_from"])}, ""
    for name, figure in figures.items():
        if figure is None:
            (out / PICTURES[name]).unlink(missing_ok=True)
        else:
            write_png(figure, out / PICTURES[name])
            shown += f"\n![{name}]({PICTURES[name]})\n"
    write_people(result["people"], out)
    write_text(out / "audit.md", markdown_report(result) + shown)
    as_json = {name: value for name, value in result.items() if name != "people"}
    write_text(out / "audit.json", json.dumps(as_json, indent=2, allow_nan=False) + "\n")
    return out
