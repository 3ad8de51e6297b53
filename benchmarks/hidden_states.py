"""Do hidden states tell whom an answer is judged for? The states of the same answers under histories of each group, as picture and number.

    python benchmarks/hidden_states.py runs/quickstart

Each response of a test pair is shown to a model once under the history of a user of each group, drawn among the test users who have not judged its
prompt; what is compared is the hidden state that the reward head reads. Texts are the same for all groups, so states can differ by the history alone.
The picture has their first two principal components. The number is how often a linear probe (logistic regression) tells the group of the history from
the state, cross-validated over the users whose histories they are; by chance one over the number of groups.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trl_pafo.data.messages import content_text
from trl_pafo.errors import ConfigError
from trl_pafo.metrics.plotting import FONT, GROUP_COLORS, add_axes, add_legend, new_figure, write_png
from trl_pafo.metrics.verdict import format_number
from trl_pafo.models import RewardScorer, set_threads
from trl_pafo.models.group_scorer import GroupScorer
from trl_pafo.models.safe_loading import has_tokenizer
from trl_pafo.report.record import Record, read_record

SIDES = ("chosen", "rejected")
FOLDS = 5


def under_all_groups(record: Record, num_pairs: int, seed: int) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Test pairs, each once a group with the history of a user of that group; and for each of these rows the group and the user."""
    rng = np.random.default_rng(seed)
    histories: dict[str, dict[str, Any]] = {name: {} for name in record.groups}
    judged: dict[str, set[str]] = defaultdict(set)
    for row in record.pairs:
        histories[row["group"]].setdefault(row["user"], row["history"])
        judged[row["user"]].add(content_text(row["prompt"]))
    rows, group, user = [], [], []
    for number in rng.permutation(len(record.pairs))[:num_pairs]:
        row = record.pairs[number]
        prompt = content_text(row["prompt"])
        for name, of_group in histories.items():
            others = [u for u, h in of_group.items() if h and prompt not in judged[u]]
            if not others:
                raise ConfigError(f"No test user of {name} has a history and has not judged {prompt!r}.")
            donor = others[rng.integers(len(others))]
            rows.append({side: row[side] for side in ("prompt", *SIDES)} | {"history": of_group[donor]})
            group.append(name)
            user.append(donor)
    return rows, group, user


def states_of(folder: Path, rows: list[dict[str, Any]]) -> np.ndarray:
    """What the reward head reads of each response, of shape `(num_rows, 2, hidden_size)`."""
    scorer = RewardScorer.from_pretrained(folder)
    if isinstance(scorer, GroupScorer) or scorer.renderer.cutter.num_history == 0:
        raise ConfigError(f"{folder} reads no history in its prompt, so its states are the same for all users.")
    found = scorer.features(scorer.sequences(rows, "row {}".format), desc=folder.name)
    return np.array([[of_row[side] for side in SIDES] for of_row in found])


def main() -> None:
    """Read the states of each model, print how often the probe is right, write the picture beside the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--methods", nargs="+", default=["personalized_bt", "pafo"])
    parser.add_argument("--pairs", type=int, default=200, help="test pairs, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_threads()
    record = read_record(args.run)
    if missing := [method for method in args.methods if not has_tokenizer(args.run / "models" / method)]:
        raise ConfigError(f"{args.run} has no model of {', '.join(missing)}.")
    rows, group, user = under_all_groups(record, args.pairs, args.seed)
    figure = new_figure(height=2.8)
    labels, donors = np.repeat(group, len(SIDES)), np.repeat(user, len(SIDES))
    colors = dict(zip(record.groups, GROUP_COLORS, strict=False))
    found = {}
    for place, method in enumerate(args.methods, start=1):
        states = states_of(args.run / "models" / method, rows)
        flat = states.reshape(-1, states.shape[-1])
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        right = cross_val_score(probe, flat, labels, groups=donors, cv=GroupKFold(FOLDS))
        found[method] = float(right.mean())
        centered = flat - flat.mean(axis=0)
        at = centered @ np.linalg.svd(centered, full_matrices=False)[2][:2].T
        axes = add_axes(figure, "first component", "second component" if place == 1 else "", place=(1, len(args.methods), place))
        axes.set_title(f"{record.title(method)}: {format_number(found[method])}", fontsize=FONT)
        mixed = np.random.default_rng(args.seed).permutation(len(flat))  # so that no group lies on top
        axes.scatter(*at[mixed].T, s=9, c=[colors[name] for name in labels[mixed]], alpha=0.7, linewidths=0)
        handles = {f"history of {name}": axes.scatter([], [], s=16, c=color) for name, color in colors.items()}
        print(
            f"{record.title(method)}: a probe tells the group of the history in {format_number(found[method])} of {len(flat)} states",
            flush=True,
        )
    add_legend(figure, list(handles.values()), list(handles))
    out = args.run / "results"
    write_png(figure, out / "hidden_states.png")
    (out / "hidden_states.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"\nBy chance {format_number(1 / len(record.groups))}. Picture: {out / 'hidden_states.png'}")


if __name__ == "__main__":
    main()
