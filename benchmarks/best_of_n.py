"""Whose best answer is chosen? Best-of-n with the models of a finished run of `styles` or `dsp`, by group.

    python benchmarks/best_of_n.py runs/quickstart
    python benchmarks/best_of_n.py runs/dsp --methods personalized_bt pafo

Every test prompt has an answer in each style (DSP: domain). A model is given all of them with the user's past pairs, and picks the one with
the highest reward. It counts how often that is an answer in the style that the user likes: the one that most of the user's chosen answers have. By
chance that is one of n. Intervals are over users, 95 %; the verdict is against the run's reference, as everywhere.
"""

import argparse
import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from trl_pafo.data.messages import content_text
from trl_pafo.data.sources.dsp import load_dsp
from trl_pafo.data.sources.styles import load_styles
from trl_pafo.data.sources.typed_users import AnsweredPrompt
from trl_pafo.errors import ConfigError
from trl_pafo.metrics import compare, fairness_summary
from trl_pafo.metrics.verdict import number_with_interval
from trl_pafo.models import FairRewardModel, RewardScorer, set_threads
from trl_pafo.models.safe_loading import has_tokenizer
from trl_pafo.report.record import Record, read_record


def answers_of(record: Record) -> dict[str, AnsweredPrompt]:
    """The prompts of the run's corpus with all their answers."""
    data = record.results["data"]
    if data["source"] == "styles":
        return {answered.prompt: answered for answered in load_styles()}
    if data["source"] == "dsp":
        return {answered.prompt: answered for answered in load_dsp(data["data_path"], data["max_words"])}
    raise ConfigError(
        f"{record.folder} is of the source {data['source']}, which has no answers in styles. Give a run of styles or dsp."
    )


def liked_styles(rows: list[dict[str, Any]], answers: dict[str, AnsweredPrompt]) -> dict[str, str]:
    """The style that most of a user's chosen answers have."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        chosen = content_text(row["chosen"])
        responses = answers[content_text(row["prompt"])].responses
        seen[row["user"]].update(style for style, text in responses.items() if text == chosen)
    return {user: styles.most_common(1)[0][0] for user, styles in seen.items()}


def requests(scorer: RewardScorer, rows: list[dict[str, Any]], answers: dict[str, AnsweredPrompt]) -> list[dict[str, Any]]:
    """All answers to the prompt of each row, with the history if the model reads one."""
    found = []
    for row in rows:
        responses = answers[content_text(row["prompt"])].responses.values()
        as_trained = [[{"role": "assistant", "content": text}] for text in responses]
        past = {} if scorer.renderer.cutter.num_history == 0 else {"history": row["history"]}
        found.append({"prompt": row["prompt"], "responses": as_trained, **past})
    return found


def fit(folder: Path, rows: list[dict[str, Any]], answers: dict[str, AnsweredPrompt]) -> np.ndarray:
    """Whether a model has positions enough for all answers of a row; its weights are not loaded."""
    scorer = RewardScorer.from_pretrained(folder)
    asked = requests(scorer, rows, answers)
    flat = [{"response": response, **request} for request in asked for response in request.pop("responses")]
    lengths = iter(max(map(len, sequences.values())) for sequences in scorer.sequences(flat, "answer {}".format))
    longest = [max(next(lengths) for _ in answers[content_text(row["prompt"])].responses) for row in rows]
    return np.array(longest) <= (scorer.positions or math.inf)


def picks(folder: Path, rows: list[dict[str, Any]], answers: dict[str, AnsweredPrompt]) -> list[str]:
    """The style of the answer that a model picks for each row."""
    model = FairRewardModel.from_pretrained(folder)
    rewards = model.score_batch(requests(model.scorer, rows, answers))
    styles = [list(answers[content_text(row["prompt"])].responses) for row in rows]
    return [names[int(np.argmax(of_row))] for names, of_row in zip(styles, rewards, strict=True)]


def main() -> None:
    """Pick for every test row, print the table, write it beside the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--methods", nargs="+", help="default: all that have a model of their own")
    args = parser.parse_args()
    set_threads()
    record = read_record(args.run)
    answers = answers_of(record)
    with_model = [method for method in record.methods if has_tokenizer(args.run / "models" / method)]
    methods = args.methods or with_model
    if missing := [method for method in methods if method not in with_model]:
        raise ConfigError(f"{args.run} has no model of {', '.join(missing)}.")
    liked = liked_styles(record.pairs, answers)
    fits_all = np.logical_and.reduce([fit(args.run / "models" / method, record.pairs, answers) for method in methods])
    rows = [row for row, fits in zip(record.pairs, fits_all, strict=True) if fits]
    user, group = [row["user"] for row in rows], [row["group"] for row in rows]
    right: dict[str, np.ndarray] = {}
    table: dict[str, Any] = {}
    num = Counter(len(answers[content_text(row["prompt"])].responses) for row in rows).most_common(1)[0][0]
    print(f"Best of {num}: {len(rows)} prompts of {len(set(user))} test users; by chance {1 / num:.3f}")
    if not fits_all.all():
        print(
            f"Left out for all models: {np.sum(~fits_all)} prompts, of which an answer is longer than the positions of one of them."
        )
    print()
    print("| model | " + " | ".join(record.groups) + " |\n| --- |" + " --- |" * len(record.groups))
    for method in methods:
        chosen = picks(args.run / "models" / method, rows, answers)
        right[method] = np.array([style == liked[name] for style, name in zip(chosen, user, strict=True)], dtype=float)
        summary = fairness_summary(right[method], user, group)
        found = {name: summary[f"accuracy/{name}"] for name in record.groups}
        table[method] = {name: {key: entry[key] for key in ("value", "low", "high")} for name, entry in found.items()}
        cells = [number_with_interval(entry) for entry in found.values()]
        print(f"| {record.title(method)} | " + " | ".join(cells) + " |", flush=True)
    print()
    for method in right:
        if method != record.reference and record.reference in right:
            verdict = compare(right[method], right[record.reference], user, group)
            table[method]["verdict"] = verdict.sentence
            print(f"{record.title(method)} against {record.title(record.reference)}: {verdict.sentence}")
    out = args.run / "results/best_of_n.json"
    out.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print(f"\nWritten: {out}")


if __name__ == "__main__":
    main()
