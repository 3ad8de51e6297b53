"""What held-out pairs say in a run: which point of the path is the reference, and what can be had from the teachers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import DatasetDict

from trl_pafo.evaluation.reference_path import Point, multiple_of, score_path
from trl_pafo.pipeline.front import predict_run
from trl_pafo.pipeline.stage import Stage
from trl_pafo.report.tables import plain_table
from trl_pafo.storage.files import json_ready, link_folder, write_text
from trl_pafo.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from trl_pafo.pipeline.run import Run

PATH = "reference_path.json"
"""File in the folder of a run: accuracies of the points of personalized_bt's path on held-out pairs, and which is the reference."""


def path_of(run: "Run", points: Mapping[Point, Stage], data: DatasetDict) -> Stage:
    """What the points are worth on held-out pairs, and which of them counts."""
    rule, num_resamples, seed = run.rule, run.run.num_resamples, run.args.seed
    folders = {point: str(run.folder / point.output) for point in points}

    def work(out: Path) -> None:
        groups = sorted(data["train"].unique("group"))
        found = score_path(folders, data.get("validation"), groups, rule, num_resamples, seed, **run._scoring())
        write_text(out, json.dumps(json_ready(found), indent=2) + "\n")

    inputs: dict[str, Any] = {
        "points": {str(point.multiple): stage.digest for point, stage in points.items()},
        "data": run._made_from["data"],
    }
    inputs |= {"rule": rule, "num_resamples": num_resamples, "seed": seed, **run._inputs_of_scoring()}
    needs = tuple(stage.name for stage in points.values())
    return Stage("reference_path", PATH, inputs, work, needs, derived=True, scores=True)


def read_path(folder: RunFolder) -> dict[str, Any]:
    return json.loads((folder / PATH).read_text(encoding="utf-8"))


def chosen_point(run: "Run", method: str, path: Stage) -> Stage:
    """The point of the path that a method is."""

    def work(out: Path) -> None:
        link_folder(run.folder / Point(multiple_of(method, read_path(run.folder)), 0).output, out)

    return Stage(method, f"models/{method}", {"path": path.digest}, work, (path.name,), derived=True)


def front_of(
    run: "Run",
    teachers: Mapping[str, list[str]],
    identities: dict[str, str],
    data: DatasetDict,
    path: Stage,
    of_groups: Sequence[Stage],
) -> Stage:
    """What can be had from the teachers, which the stages `of_groups` train, on held-out pairs, beside the path."""
    held_out = data["validation"] if "validation" in data else data["test"].select([])
    options: dict[str, Any] = {"tau": run.args.tau, "num_resamples": run.run.num_resamples, "seed": run.args.seed}

    def work(out: Path) -> None:
        predict_run(out, held_out, data["train"], teachers, read_path(run.folder), **options, **run._scoring())

    inputs = {"teachers": identities, "path": path.digest, "data": run._made_from["data"], **options}
    needs = tuple(stage.name for stage in (*of_groups, path))
    return Stage("front", "front", inputs | run._inputs_of_scoring(), work, needs, derived=True, scores=True)


def read_front(folder: RunFolder) -> dict[str, Any]:
    return json.loads((folder / "front/front.json").read_text(encoding="utf-8"))


def say_front(folder: RunFolder) -> None:
    front = read_front(folder)
    print(f"{plain_table(front['points']) if front['points'] else ''}    {front['sentence']}", flush=True)
