"""Evaluation and training logs on one, two and three processes, against a plain loop over the pairs in this process."""

import json
import os
from pathlib import Path

import evaluate_on_ranks as ranks
import pytest
from filelock import FileLock
from helpers.naive import naive_metrics, naive_pairs
from helpers.parts import make_model
from helpers.rounding import rounding
from launcher import launch
from transformers import AutoModelForSequenceClassification

import trl_pafo.trainer.pair_metrics
from trl_pafo import PAFORewardTrainer

CENTER = 0.02
RUNS = [
    pytest.param((1, "full"), id="1-full"),
    pytest.param((1, "lora"), id="1-lora"),
    pytest.param((2, "full"), id="2-full"),
    pytest.param((2, "lora"), id="2-lora", marks=pytest.mark.slow),
    pytest.param((3, "full"), id="3-full", marks=pytest.mark.slow),
    pytest.param((3, "lora"), id="3-lora", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory) -> tuple[list[dict], list[dict]]:
    """What each process wrote down, and the evaluation pairs with their rewards under the trained model."""
    num_processes, kind = request.param
    base = tmp_path_factory.getbasetemp()
    # Workers of pytest-xdist share what one of them has started.
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"ranks-{num_processes}-{kind}"
    files = [out / f"rank{rank}.json" for rank in range(num_processes)]
    with FileLock(f"{out}.lock"):
        if not all(file.exists() for file in files):
            out.mkdir()
            start(num_processes, make_model("encoder", out / "model"), out, kind)
    trained = AutoModelForSequenceClassification.from_pretrained(out / "trained", num_labels=1)
    return [json.loads(file.read_text()) for file in files], naive_pairs(trained, rows_of(str(out / "model"), out))


def start(num_processes: int, model: str, out: Path, kind: str) -> None:
    if num_processes > 1:
        launch(Path(ranks.__file__), num_processes, model, str(out), kind)
        return
    with pytest.MonkeyPatch.context() as patch:
        pair_metrics = trl_pafo.trainer.pair_metrics
        patch.setattr(pair_metrics, "gather_object", pair_metrics.gather_object)  # put back at the end
        (out / "rank0.json").write_text(json.dumps(ranks.main(model, out, kind)))


def rows_of(model: str, out: Path) -> list[dict]:
    """The evaluation pairs, tokenized."""
    trainer = PAFORewardTrainer(model, ranks.options(out / "tokens"), eval_dataset=ranks.evaluation_pairs())
    return list(trainer.eval_dataset)


def expected(pairs: list[dict], prefix: str) -> dict[str, float]:
    return {f"{prefix}_{k}": v for k, v in naive_metrics(pairs, ["majority", "minority"], CENTER).items()}


def exact(metrics: dict, prefix: str, *more: str) -> dict:
    """The metrics without those that are no mean over the pairs."""
    others = {f"{prefix}_{key}" for key in ("num_tokens", *more)} | {"epoch"}
    assert others <= {*metrics, "epoch"}
    return {key: value for key, value in metrics.items() if key not in others}


def close(values: dict) -> dict:
    return pytest.approx(values, abs=rounding(), nan_ok=True)  # float32 in batches against float64 alone


def without(pairs: list[dict], *columns: str) -> list[dict]:
    return [{key: value for key, value in pair.items() if key not in columns} for pair in pairs]


def test_several_sets_by_name_are_exact(run):
    seen, pairs = run
    subsets = {
        "all": pairs,
        "minority": [pair for pair in pairs if pair["group"] == "minority"],
        "three": [pairs[i] for i in (0, 9, 16)],
        "plain": without(pairs, "group", "user"),
        "stream": pairs,
        "files": pairs,
    }
    for name, subset in subsets.items():
        prefix = f"eval_{name}"
        metrics = {k: v for k, v in seen[0]["evaluate"].items() if k.startswith(f"{prefix}_")}
        assert exact(metrics, prefix, "mean_of_mine", "rank") == close(expected(subset, prefix)), name


@pytest.mark.parametrize(
    ("way", "more"),
    [
        ("accumulated", ["mean_of_mine", "rank"]),
        ("workers", ["mean_of_mine", "rank"]),
        ("uneven", ["mean_of_mine", "rank"]),
        ("loss_only", []),
        ("by_batch", ["pairs_by_batch"]),
    ],
)
def test_options_change_no_number(run, way, more):
    seen, pairs = run
    assert exact(seen[0][way], "eval", *more) == close(expected(pairs, "eval"))


def test_predict_gives_one_row_a_pair_in_the_order_of_the_dataset(run):
    seen, pairs = run
    assert exact(seen[0]["predict"], "test", "mean_of_mine", "rank") == close(expected(pairs, "test"))
    assert seen[0]["predicted_users"] == [pair["user"] for pair in pairs]
    for got, pair in zip(seen[0]["predictions"], pairs, strict=True):
        assert got == pytest.approx([pair["chosen"], pair["rejected"]], abs=rounding())


def test_compute_metrics_gets_one_row_a_pair_with_names_inputs_and_losses(run, tmp_path_factory):
    seen, pairs = run
    found = seen[0]["seen"]  # of the last evaluation that asked: all pairs
    assert found["group"] == [pair["group"] for pair in pairs]
    assert found["user"] == [pair["user"] for pair in pairs]
    assert len(found["predictions"]) == len(pairs)
    assert found["losses"] == pytest.approx([naive_metrics([pair], center=CENTER)["loss"] for pair in pairs], abs=rounding())
    out = tmp_path_factory.mktemp("inputs")
    rows = rows_of(make_model("encoder", out / "model"), out)
    assert found["inputs"] == [[row["chosen_ids"], row["rejected_ids"]] for row in rows]
    assert seen[0]["accumulated"]["eval_mean_of_mine"] == pytest.approx(
        sum(pair["chosen"] + pair["rejected"] for pair in pairs) / (2 * len(pairs)), abs=rounding()
    )


def test_with_batch_eval_metrics_all_pairs_are_one_batch(run):
    seen, pairs = run
    assert seen[0]["batches"] == [[len(pairs), True]]
    assert seen[0]["by_batch"]["eval_pairs_by_batch"] == len(pairs)


def test_every_process_says_the_same(run):
    seen, _ = run
    for other in seen[1:]:
        for what in ("logs", "evaluate", "predict", "predictions", "accumulated", "workers", "uneven", "by_batch", "seen"):
            assert json.dumps(other[what]) == json.dumps(seen[0][what]), what  # to the last digit, NaN included


def test_training_logs_are_sums_over_the_pairs_of_all_processes(run):
    seen, _ = run
    assert len(seen[0]["logs"]) == 2
    tokens = 0
    for number, log in enumerate(seen[0]["logs"]):
        steps = [step for rank in seen for step in rank["steps"][2 * number : 2 * number + 2]]
        rows = [
            {"chosen": c, "rejected": r, "label": label, "group": group}
            for chosen, rejected, _, labels, groups, _ in steps
            for c, r, label, group in zip(chosen, rejected, labels, groups, strict=True)
        ]
        labeled = naive_metrics([row for row in rows if row["label"]], ["majority", "minority"])
        everyone = naive_metrics(rows)
        tokens += sum(step[2] for step in steps)
        wanted = {key: labeled[key] for key in ("accuracy", "margin", "accuracy/majority", "accuracy/minority")}
        wanted |= {key: everyone[key] for key in ("min_reward", "mean_reward", "max_reward")}
        terry, distilled, weight = (sum(step[5][place] for step in steps) for place in range(3))
        wanted |= {"bradley_terry_loss": terry / sum(row["label"] for row in rows), "distillation_loss": distilled / weight}
        wanted["num_tokens"] = tokens
        assert {key: log[key] for key in wanted} == pytest.approx(wanted, abs=1e-9, nan_ok=True)
    assert len(rows) == 2 * 3 * len(seen)


def test_processes_talk_once_a_log_and_once_an_evaluation(run):
    seen, _ = run
    for rank in seen:
        assert rank["gathers"] == len(rank["logs"])
        assert rank["gathers_of_evaluate"] == len(ranks.evaluation_sets())
