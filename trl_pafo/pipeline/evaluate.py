"""The last stage of a run: test pairs under every method."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_pafo.data.groups import largest_and_smallest
from trl_pafo.evaluation.evaluate import summary_of, verdict_of, write_rewards
from trl_pafo.evaluation.history_effect import STUDENTS
from trl_pafo.evaluation.methods import TITLES, RunArguments
from trl_pafo.evaluation.reference_path import accuracies_of
from trl_pafo.evaluation.rewards import ScoredPairs, score_routed, score_rows
from trl_pafo.evaluation.teacher_gain import TeacherGain
from trl_pafo.report.results import write_results
from trl_pafo.storage.files import json_ready, write_text
from trl_pafo.trainer.config import PAFOConfig


def evaluate_run(
    out: Path,
    models: Mapping[str, Any],
    test: Dataset,
    train: Dataset,
    run: RunArguments,
    args: PAFOConfig,
    seconds: Mapping[str, float],
    teacher_gains: Sequence[TeacherGain],
    path: dict[str, Any],
    points: Mapping[float, str],
) -> None:
    """Score the test pairs under each method and write rewards, tables, verdicts and the picture to `out`.

    `path` is what [`~trl_pafo.evaluation.reference_path.score_path`] found, `points` the model of each multiple.
    """
    tested = set(test["group"])
    of_tested = train.select([i for i, group in enumerate(train["group"]) if group in tested])
    majority, minority = largest_and_smallest(of_tested["group"], of_tested["user"])
    untested = sorted(set(train["group"]) - set(test["group"]))
    side = majority if majority != minority else None
    out.mkdir(parents=True)
    rewards: dict[str, ScoredPairs] = {}
    summaries: dict[str, Any] = {}
    how: dict[str, Any] = {"batch_size": args.per_device_eval_batch_size, "bf16": bool(args.bf16)}

    def summarize(scored: ScoredPairs) -> dict[str, Any]:
        return summary_of(scored, test, side, run.num_resamples, args.seed) | _unknown(untested)

    for method, source in models.items():
        desc = f"Test pairs, {TITLES[method]}"
        score = score_routed if isinstance(source, dict) else score_rows
        rewards[method] = scored = score(source, test, desc=desc, **how)
        summaries[method] = summarize(scored)
        write_rewards(out, method, test, scored)
    for point in path.get("points", ()):
        multiple = point["multiple"]
        summary = summaries["personalized_bt"]
        if multiple != path["chosen"]:
            summary = summarize(score_rows(points[multiple], test, desc=f"Test pairs, x{multiple:g}", **how))
        point["test"] = accuracies_of(summary)
    reference = run.reference
    verdicts = {
        method: verdict_of(
            rewards[method],
            rewards[reference],
            test,
            args.seed,
            (models[method], models[reference]),
            "nothing was distilled" if method in STUDENTS else "",
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
        "teachers": [asdict(gain) | {"sentence": str(gain)} for gain in teacher_gains],
        "seconds": dict(seconds),
        "data": run.data_inputs(),
    }
    write_text(out / "results.json", json.dumps(json_ready(results), indent=2, default=str) + "\n")
    write_results(out, results)


def _unknown(groups: Sequence[str]) -> dict[str, Any]:
    """What is known of groups without test pairs."""
    unknown = {f"accuracy/{group}": dict.fromkeys(("value", "low", "high"), math.nan) for group in groups}
    return unknown | {f"num_{what}/{group}": 0 for group in groups for what in ("users", "pairs")}
