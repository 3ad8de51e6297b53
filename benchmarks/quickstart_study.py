"""What alpha, the loss and counterfactual rows do on the quickstart's data, over several populations and training seeds.

    python benchmarks/quickstart_study.py --seeds 0 2 3 --output_dir runs/study

Each seed draws other users, pairs and splits, and trains from another random head. A seed's baselines and teachers are trained once; each
arm trains a student on them. The control is a personalized Bradley-Terry model with as many optimizer steps as the student of PAFO has.
Everything is a run of `trl-pafo quickstart`, so that a killed study goes on where it was. The table is written after each arm.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

ARMS = {
    "PAFO, alpha .1 (default)": [],
    "PAFO, alpha .25": ["--alpha", "0.25"],
    "PAFO, alpha .5": ["--alpha", "0.5"],
    "PAFO, alpha .8": ["--alpha", "0.8"],
    "PAFO, mse": ["--distillation_loss", "mse"],
    "PAFO, own group only": ["--counterfactual_share", "0"],
}
CONTROL = "personalized BT, twice the epochs"


def quickstart(folder: Path, seed: int, *options: str) -> dict:
    """Run (or go on with) a quickstart; return its results."""
    command = [sys.executable, "-m", "trl_pafo.cli", "quickstart", "--output_dir", str(folder), "--overwrite", "true"]
    command += ["--population_seed", str(seed), "--seed", str(42 + seed), *options]
    subprocess.run(command, check=True)
    return json.loads((folder / "results/results.json").read_text(encoding="utf-8"))


def accuracies(results: dict, method: str) -> dict[str, float]:
    summary = results["methods"][method]
    return {side: summary[side]["value"] for side in ("majority", "minority")}


def write_table(found: dict[str, dict[int, dict[str, float]]], folder: Path) -> str:
    """Mean and standard deviation over seeds, and every seed's figures."""
    lines = ["| model | seeds | majority | minority |", "| --- | ---: | ---: | ---: |"]
    for name, by_seed in found.items():
        cells = []
        for side in ("majority", "minority"):
            values = np.array([by_seed[seed][side] for seed in sorted(by_seed)])
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3f}{spread} ({', '.join(f'{v:.3f}' for v in values)})")
        lines.append(f"| {name} | {len(by_seed)} | {' | '.join(cells)} |")
    table = "\n".join(lines)
    (folder / "study.md").write_text(table + "\n", encoding="utf-8")
    (folder / "study.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 2, 3], help="Population seeds; 1 is the quickstart's own.")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/study"))
    args, more = parser.parse_known_args()
    found: dict[str, dict[int, dict[str, float]]] = {}

    def note(name: str, seed: int, values: dict[str, float]) -> None:
        found.setdefault(name, {})[seed] = values
        print("\n" + write_table(found, args.output_dir) + "\n", flush=True)

    for seed in args.seeds:
        base = args.output_dir / f"seed{seed}/base"
        results = quickstart(base, seed, "--methods", "personalized_bt", "group_routed", *more)
        note("personalized BT", seed, accuracies(results, "personalized_bt"))
        note("group-routed teachers", seed, accuracies(results, "group_routed"))
        for number, name in enumerate(ARMS):
            if name not in args.arms:
                continue
            folder = args.output_dir / f"seed{seed}/arm{number}"
            if not folder.exists():
                aside = folder.with_name(folder.name + ".partial")
                shutil.rmtree(aside, ignore_errors=True)
                shutil.copytree(base, aside)
                aside.rename(folder)
            results = quickstart(folder, seed, "--methods", "personalized_bt", "pafo", *ARMS[name], *more)
            note(name, seed, accuracies(results, "pafo"))
        epochs = ["--num_train_epochs", "4"]  # the student sees each pair twice an epoch, for two epochs
        results = quickstart(args.output_dir / f"seed{seed}/control", seed, "--methods", "personalized_bt", *epochs, *more)
        note(CONTROL, seed, accuracies(results, "personalized_bt"))
    print(f"Table: {args.output_dir / 'study.md'}")


if __name__ == "__main__":
    main()
