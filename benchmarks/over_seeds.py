"""What runs with other populations and training seeds say together: means over the runs, and differences with intervals over runs.

for n in 0 1 2 3 4; do trl-pafo quickstart --population_seed $n --seed $n --output_dir runs/seed$n; done
python benchmarks/over_seeds.py runs/seed*

Accuracies are on test pairs. A difference is to the reference of its own run, the best point of personalized Bradley-Terry's path; its
interval is Student's t over the runs, 95 %. *Way* is the share of the distance from the reference to the group-routed teachers.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t


def with_interval(values: list[float]) -> str:
    """Mean, and its 95 % interval where there are several values."""
    mean, number = np.mean(values), len(values)
    if number < 2:
        return f"{mean:+.3f}"
    half = student_t.ppf(0.975, number - 1) * np.std(values, ddof=1) / np.sqrt(number)
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def table_of(runs: list[dict]) -> str:
    """A row a method (points of the path beside them), a column a group."""
    groups = [runs[0]["majority"], runs[0]["minority"]]
    accuracies: dict[str, np.ndarray] = {}
    for method in runs[0]["methods"]:
        if all(method in run["methods"] for run in runs):
            accuracies[method] = np.array([[run["methods"][method][f"accuracy/{g}"]["value"] for g in groups] for run in runs])
    for place, point in enumerate(runs[0].get("path", {}).get("points", [])):
        found = [[run["path"]["points"][place]["test"][f"accuracy/{g}"]["value"] for g in groups] for run in runs]
        accuracies[f"personalized BT, x{point['multiple']:g}"] = np.array(found)
    reference = accuracies[runs[0]["reference"]]
    lines = [f"{len(runs)} runs | " + " | ".join(groups) + " | difference to the reference: " + " | ".join(groups) + " | way"]
    for method, found in accuracies.items():
        differences = found - reference
        cells = [f"{value:.3f}" for value in found.mean(axis=0)] + [with_interval(column.tolist()) for column in differences.T]
        routed = accuracies.get("group_routed")
        way = "" if routed is None else f"{differences.sum() / (routed - reference).sum():.0%}"
        lines.append(" | ".join([method, *cells, way]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs that differ in seeds alone")
    runs = [json.loads((run / "results/results.json").read_text(encoding="utf-8")) for run in parser.parse_args().runs]
    print(table_of(runs))
    for run in runs:
        verdict = run["verdicts"].get("pafo")
        if verdict:
            print(f"population {run['data']['population_seed']}: {verdict['sentence']}")


if __name__ == "__main__":
    main()
