"""Folders as a run leaves them, with made-up rewards: for tests of what reads them."""

import json
from pathlib import Path

import numpy as np
from datasets import Dataset

from trl_pafo.data.people import people_of, write_people
from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.evaluation.reference_path import accuracies_of
from trl_pafo.metrics import compare, fairness_summary, pair_correctness

SKILL = {"bradley_terry": (0.9, -0.1), "personalized_bt": (0.9, 0.1), "pafo": (0.8, 0.9), "group_routed": (1.1, 1.4)}


def make_rows(groups=("majority", "minority"), users=(12, 5), pairs_per_user=4, text="plain"):
    """Test pairs as `prepare` writes them; every text holds `text`."""
    rows = []
    for g, (group, number) in enumerate(zip(groups, users, strict=True)):
        for u in range(number):
            for p in range(pairs_per_user):
                name = f"{group}-{u}"
                past = {side: f"{side} of the past of {name} {p} {text}" for side in ("prompt", "chosen", "rejected")}
                rows.append(
                    {
                        "prompt": [{"role": "user", "content": f"question {p} of {name} {text}"}],
                        "chosen": [{"role": "assistant", "content": f"liked {p} {text}"}],
                        "rejected": [{"role": "assistant", "content": f"disliked {p} {text}"}],
                        "user": name,
                        "group": group,
                        "support_rate": (0.8, 0.2, 0.1, 0.05)[g],
                        "chat_template_kwargs": {"history": [{"chosen": past["chosen"]}]},
                        "history": [past],
                    }
                )
    return rows


def make_front(groups=("majority", "minority"), shared="personalized BT"):
    """A predicted front: the first group has .7 under the best point of the path, the last .4; mixed teachers are better by up to .1."""

    def summary(more):
        means = {
            "accuracy": np.linspace(0.7, 0.4, len(groups)) + more,
            "log_likelihood": np.linspace(-0.3, -0.6, len(groups)) + more,
        }
        numbers = {
            f"{kind}/{g}": {"value": v, "low": v - 0.02, "high": v + 0.02}
            for kind, of in means.items()
            for g, v in zip(groups, of, strict=True)
        }
        return numbers | {f"num_{what}/{name}": 20 for what in ("users", "pairs") for name in groups}

    mixture = [{"tau": tau, "name": f"mixture of teachers, tau {tau}", "gains": {}} for tau in (0, 1)]
    path = [{"multiple": multiple, "name": f"{shared}, x{multiple}"} for multiple in (1, 2)]
    names = [at["name"] for at in mixture + path] + ["group-routed teachers"]
    points = {name: summary(more) for name, more in zip(names, (0.05, 0.1, -0.1, 0, 0.2), strict=True)}
    facts = {"majority": groups[0], "minority": groups[-1], "worth": True, "tau": 1, "sentence": "Worth distilling: so it is."}
    return {"points": points, "mixture": mixture, "path": path, "reference": path[1]["name"], **facts}


def make_run(
    folder: Path, methods=tuple(SKILL), groups=("majority", "minority"), users=(12, 5), text="plain", seed=0, units=False, **data
):
    """A finished run: results, rewards, test pairs, logs and a manifest, but no models; with `units`, of new pairs of known people."""
    rows = make_rows(groups, users, text=text)
    unit = [f"{row['user']}, {i // 2}" for i, row in enumerate(rows)] if units else None
    rows = [row | {"unit": of_row} for row, of_row in zip(rows, unit, strict=True)] if unit else rows
    user, group = [row["user"] for row in rows], [row["group"] for row in rows]
    support = [row["support_rate"] for row in rows]
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=len(rows))
    (folder / "results").mkdir(parents=True)
    (folder / "data").mkdir()
    correct, summaries = {}, {}
    for method in methods:
        skill = np.array([SKILL[method][g != groups[0]] for g in group])
        rejected = rng.normal(size=len(rows)).round(3)
        chosen = (rejected + skill + shared + 0.5 * rng.normal(size=len(rows))).round(3)
        lines = zip(user, group, chosen.tolist(), rejected.tolist(), strict=True)
        keys = ("user", "group", "reward_chosen", "reward_rejected")
        text_lines = [json.dumps(dict(zip(keys, line, strict=True))) for line in lines]
        (folder / f"results/{method}.jsonl").write_text("\n".join(text_lines) + "\n", encoding="utf-8")
        correct[method] = pair_correctness(chosen - rejected)
        summaries[method] = fairness_summary(correct[method], user, group, support=support, unit=unit, num_resamples=60)
    reference = "personalized_bt" if "personalized_bt" in methods else methods[0]
    verdicts = {}
    for method in methods:
        if method != reference:
            verdict = compare(correct[method], correct[reference], user, group, unit=unit, num_resamples=400)
            verdicts[method] = {k: getattr(verdict, k) for k in ("verdict", "differences", "sentence")}
    path = make_path(groups, summaries["personalized_bt"]) if "personalized_bt" in methods else {}
    arguments = DataArguments(**{"source": "styles", **data}).data_inputs()
    results = {"majority": groups[0], "minority": groups[-1], "reference": reference, "methods": summaries, "verdicts": verdicts}
    results |= {"path": path, "front": make_front(groups), "seconds": {}, "data": arguments}
    write_json(folder / "results/results.json", results)
    test = Dataset.from_list(rows)
    test.to_parquet(folder / "data/test.parquet")
    write_people(people_of({"test": test}), folder / "data")
    past = rows if units else [row | {"user": f"old-{row['user']}"} for row in rows]
    Dataset.from_list(past).to_parquet(folder / "data/train.parquet")
    counts = {"pairs": {g: group.count(g) for g in groups}, "users": dict(zip(groups, users, strict=True))}
    write_json(
        folder / "data/summary.json",
        {"train": counts, "test": counts, "groups": "data", "hold_out": "pairs" if units else "users_and_prompts"},
    )
    stages = {"prepare": {"inputs": {**arguments, "num_history": 1, "tokenizer": "minilm"}, "output": "data", "seconds": 1.0}}
    for g in groups:
        output = f"teachers/{groups.index(g)}"
        stages[f"teacher:{g}"] = {"inputs": {"seed": 42, "start": "warm", "min_steps": 7}, "output": output, "seconds": 3.0}
    for method in methods:
        if method == "personalized_bt":
            stages[method] = {"inputs": {"path": "abc"}, "output": f"models/{method}", "seconds": 0.0}
        name = "personalized_bt@2" if method == "personalized_bt" else method
        if method != "group_routed":
            inputs = {"seed": 42, "learning_rate": 1e-4, "method": method, "base": "abc", "lora_target_modules": None}
            inputs |= {"alpha": 0.25} if method == "pafo" else {}
            stages[name] = {"inputs": inputs, "output": f"models/{method}", "seconds": 2.0}
            (folder / "models" / method).mkdir(parents=True)
            log = [{"step": step, **{f"accuracy/{g}": 0.5 + step / 40 for g in groups}} for step in range(20)]
            write_json(folder / "models" / method / "trainer_state.json", {"global_step": 20, "log_history": log})
    inputs = {"seed": 42, "reference": reference, "num_resamples": 60, "models": {}, "data": "abc"}
    stages["evaluate"] = {"inputs": inputs, "output": "results", "seconds": 1.0, "finished": "2026-01-02T03:04:05+0000"}
    write_json(folder / "manifest.json", {"format": "trl-pafo run 4", "stages": stages})
    (folder / "run.yaml").write_text(f"source: {arguments['source']}\nalpha: 0.25\nseed: {seed}\n", encoding="utf-8")
    return folder


def make_path(groups, reference):
    """Accuracies of the path of personalized BT, of which x2 is the reference: the last group gains, the first loses."""
    points = []
    for multiple, shift in ((0.5, -0.3), (1.0, -0.2), (2.0, 0.0), (4.0, 0.1)):
        moved = {g: -0.05 * shift if g == groups[0] else shift for g in groups}
        ends = {"low": None, "high": None} if multiple == 4 else {"low": 0.1, "high": 0.9}
        held_out = {f"accuracy/{g}": {"value": 0.5 + moved[g] / 2, **ends} for g in groups}
        held_out |= {f"num_{what}/{g}": 10 for what in ("users", "pairs") for g in groups}
        test = accuracies_of(reference)
        test |= {f"accuracy/{g}": {**test[f"accuracy/{g}"], "value": test[f"accuracy/{g}"]["value"] + moved[g]} for g in groups}
        overall = {"overall": {"value": 0.5, **ends}, "num_users": 20, "num_pairs": 20}
        points.append({"multiple": multiple, "steps": int(60 * multiple), "validation": held_out | overall, "test": test})
    best = {"group_balanced": 2.0, "worst_group": 4.0, "overall": 1.0}
    sentence = "The reference is personalized BT of 120 steps, 2 times the student's, the best of its path."
    return {"points": points, "best": best, "rule": "group_balanced", "chosen": 2.0, "sentence": sentence}


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
