"""The last stage of a run: test pairs under every method."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from trl_pafo.data.groups import largest_and_smallest
from trl_pafo.evaluation.evaluate import summary_of, verdict_of, write_rewards
from trl_pafo.evaluation.front import add_student
from trl_pafo.evaluation.methods import STUDENTS, TITLES, RunArguments
from trl_pafo.evaluation.mixture import TeacherMixture, score_mixture
from trl_pafo.evaluation.reference_path import accuracies_of
from trl_pafo.evaluation.rewards import ScoredPairs, score_routed, score_rows
from trl_pafo.pipeline.maxmin import score_maxmin
from trl_pafo.pipeline.user_models import FittedUserModel
from trl_pafo.report.front import write_front
from trl_pafo.report.results import write_results
from trl_pafo.storage.files import json_ready, write_text
from trl_pafo.trainer.config import PAFOConfig

SCORERS = {"maxmin": score_maxmin}
"""How pairs are scored under methods whose folder is no saved model."""


def evaluate_run(
    out: Path,
    models: Mapping[str, Any],
    data: DatasetDict,
    run: RunArguments,
    args: PAFOConfig,
    seconds: Mapping[str, float],
    path: dict[str, Any],
    front: dict[str, Any] | None,
    points: Mapping[float, str],
    **how: Any,
) -> None:
    """Score the test pairs under each method and write rewards, tables, verdicts and pictures to `out`.

    `path` is what [`~trl_pafo.evaluation.reference_path.score_path`] found, `front` what [`~trl_pafo.pipeline.front.predict_run`] did,
    `points` the model of each multiple, `how` are options of [`~trl_pafo.evaluation.rewards.score_rows`]. Students that were distilled are added to the front, judged on the same held-out pairs.
    """
    train, test = data["train"], data["test"]
    tested = set(test["group"])
    of_tested = train.select([i for i, group in enumerate(train["group"]) if group in tested])
    majority, minority = largest_and_smallest(of_tested["group"], of_tested["user"])
    untested = sorted(set(train["group"]) - set(test["group"]))
    out.mkdir(parents=True)
    rewards: dict[str, ScoredPairs] = {}
    summaries: dict[str, Any] = {}

    def summarize(scored: ScoredPairs) -> dict[str, Any]:
        return summary_of(scored, test, run.num_resamples, args.seed) | _unknown(untested)

    for method, source in models.items():
        desc = f"Test pairs, {TITLES[method]}"
        if method == "teacher_mixture" and front is not None:
            mixture = TeacherMixture.from_json(front["fitted"])
            scored = score_mixture(mixture, front["tau"], source, test, desc=desc, **how)
        elif isinstance(source, FittedUserModel):
            scored = source.score()
        else:
            score = SCORERS.get(method, score_routed if isinstance(source, dict) else score_rows)
            scored = score(source, test, desc=desc, **how)
        rewards[method] = scored
        summaries[method] = summarize(scored)
        write_rewards(out, method, test, scored)
    for point in path.get("points", ()):
        multiple = point["multiple"]
        summary = summaries["personalized_bt"]
        if multiple != path["chosen"]:
            summary = summarize(score_rows(points[multiple], test, desc=f"Test pairs, x{multiple:g}", **how))
        point["test"] = accuracies_of(summary)
    if front is not None and front["points"]:
        held_out = data["validation"]
        for method in STUDENTS if front["worth"] or run.distill_anyway else ():
            if method in models:
                chosen, rejected = score_rows(models[method], held_out, desc=f"Held-out pairs, {TITLES[method]}", **how)
                who = (held_out["user"][:], held_out["group"][:])
                add_student(front, TITLES[method], chosen - rejected, *who, run.num_resamples, args.seed)
        write_front(out, front)
    path.pop("margins", None)
    reference = run.reference
    verdicts = {
        method: verdict_of(
            rewards[method],
            rewards[reference],
            test,
            (models[method], models[reference]),
            "nothing was distilled" if method in STUDENTS else "",
            args.seed,
        )
        for method in models
        if method != reference
    }
    results = {
        "majority": majority,
        "minority": minority,
        "reference": run.reference,
        "not_evaluated": untested,
        "methods": summaries,
        "verdicts": verdicts,
        "path": path,
        "front": front,
        "seconds": dict(seconds),
        "data": run.data_inputs(),
    }
    write_text(out / "results.json", json.dumps(json_ready(results), indent=2, default=str) + "\n")
    write_results(out, results)


def _unknown(groups: Sequence[str]) -> dict[str, Any]:
    """What is known of groups without test pairs."""
    unknown = {f"accuracy/{group}": dict.fromkeys(("value", "low", "high"), math.nan) for group in groups}
    return unknown | {f"num_{what}/{group}": 0 for group in groups for what in ("users", "pairs")}
