"""The last stage of a run: test pairs under every method."""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from trl_pafo.baselines.table import USER_MODELS
from trl_pafo.data.groups import largest_and_smallest
from trl_pafo.evaluation.evaluate import summary_of, verdict_of, write_rewards
from trl_pafo.evaluation.front import add_student
from trl_pafo.evaluation.methods import STUDENTS, TITLES, RunArguments
from trl_pafo.evaluation.mixture import score_mixture
from trl_pafo.evaluation.reference_path import CHOSEN, accuracies_of, multiple_of
from trl_pafo.evaluation.rewards import ScoredPairs, score_routed, score_rows
from trl_pafo.pipeline.maxmin import score_maxmin
from trl_pafo.pipeline.user_models import read_choice, score_fitted
from trl_pafo.report.front import write_front
from trl_pafo.report.results import write_results
from trl_pafo.storage.files import json_ready, write_text
from trl_pafo.trainer.config import PAFOConfig


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
    `points` the model of each multiple, `how` are options of [`~trl_pafo.evaluation.rewards.score_rows`]. Students that were distilled
    are added to the front, judged on the same held-out pairs.
    """
    train, test = data["train"], data["test"]
    tested = set(test["group"])
    of_tested = train.select([i for i, group in enumerate(train["group"]) if group in tested])
    majority, minority = largest_and_smallest(of_tested["group"], of_tested["user"])
    untested = sorted(set(train["group"]) - tested)
    unknown: dict[str, Any] = {f"accuracy/{group}": dict.fromkeys(("value", "low", "high"), math.nan) for group in untested}
    unknown |= {f"num_{what}/{group}": 0 for group in untested for what in ("users", "pairs")}
    out.mkdir(parents=True)
    # How a method gives rewards: `score(source, rows, **how)`, for what it left in the run; the others left a saved model.
    scorers: dict[str, Callable[..., ScoredPairs]] = {
        "group_routed": score_routed,
        "teacher_mixture": partial(score_mixture, front or {}),
        "maxmin": score_maxmin,
        **dict.fromkeys(USER_MODELS, score_fitted),
    }
    kept = front is not None and not front["worth"] and not run.distill_anyway
    students = [method for method in STUDENTS if method in models]
    # A method that is a point of the path has its rewards.
    point_of = {method: multiple_of(method, path) for method in CHOSEN if method in models}
    point_of |= {method: point_of["personalized_bt"] for method in students if kept}

    def judged(source: Any, what: str, score: Callable[..., ScoredPairs] = score_rows) -> tuple[ScoredPairs, dict[str, Any]]:
        scored = score(source, test, desc=f"Test pairs, {what}", **how)
        return scored, summary_of(scored, test, run.num_resamples, args.seed) | unknown

    of_points = {multiple: judged(source, f"personalized BT, x{multiple:g}") for multiple, source in points.items()}
    found = {}
    for method, source in models.items():
        at = point_of.get(method)
        score = scorers.get(method, score_rows)
        found[method] = judged(source, TITLES[method], score) if at is None else of_points[at]
        write_rewards(out, method, test, found[method][0])
    for point in path.get("points", ()):
        point["test"] = accuracies_of(of_points[point["multiple"]][1])
    if front is not None and front["points"]:
        held_out = data["validation"]
        for method in () if kept else students:
            chosen, rejected = score_rows(models[method], held_out, desc=f"Held-out pairs, {TITLES[method]}", **how)
            who = (held_out["user"][:], held_out["group"][:])
            add_student(front, TITLES[method], chosen - rejected, *who, run.num_resamples, args.seed)
        write_front(out, front)
    path.pop("margins", None)
    reference = run.reference
    verdicts = {}
    for method in models:
        if method != reference:
            pair, same = (models[method], models[reference]), "nothing was distilled" if method in STUDENTS else ""
            verdicts[method] = verdict_of(found[method][0], found[reference][0], test, pair, same, args.seed)
    results = {
        "majority": majority,
        "minority": minority,
        "reference": reference,
        "not_evaluated": untested,
        "methods": {method: summary for method, (_, summary) in found.items()},
        "verdicts": verdicts,
        "path": path,
        "features": {method: read_choice(models[method]) for method in models if method in USER_MODELS},
        "front": front,
        "seconds": dict(seconds),
        "data": run.data_inputs(),
    }
    write_text(out / "results.json", json.dumps(json_ready(results), indent=2, default=str) + "\n")
    write_results(out, results)
