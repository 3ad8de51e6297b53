"""Evaluation and training logs on one, two and three processes, against a plain loop over the pairs in this process."""

import json
import os
from pathlib import Path

import pytest
from datasets import Dataset, IterableDataset
from filelock import FileLock
from helpers.naive import naive_metrics, naive_pairs
from helpers.parts import make_model, make_pairs, with_margins
from helpers.ranks import launch, options
from helpers.rounding import rounding
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification

import trl_pafo.trainer.pair_metrics
from trl_pafo import PAFOConfig, PAFORewardTrainer

CENTER = 0.02
NUM_PAIRS = 17  # with a batch of 4: an uneven last batch on one process, and copies of pairs on two and three


def evaluation_pairs() -> Dataset:
    rows = make_pairs(num_users=5, num_minority=2, pairs_per_user=4, history=0, seed=3).select(range(NUM_PAIRS))
    return rows.add_column("margin", [0.25 * (i % 3) for i in range(NUM_PAIRS)])


def stream(rows: Dataset, shards: list[int]) -> IterableDataset:
    """A stream of files with so many rows each, in the order of the rows."""

    def files(numbers):
        for number in numbers:
            start = sum(shards[:number])
            yield from rows.select(range(start, start + shards[number]))

    # Without features a stream does not know its columns, as one of JSON files does not.
    return IterableDataset.from_generator(files, gen_kwargs={"numbers": list(range(len(shards)))}, features=None)


def evaluation_sets() -> dict[str, Dataset | IterableDataset]:
    rows = evaluation_pairs()
    return {
        "all": rows,
        "minority": rows.filter(lambda row: row["group"] == "minority"),
        "three": rows.select([0, 9, 16]),  # fewer pairs than processes times batch
        "plain": rows.remove_columns(["group", "user"]),
        "stream": stream(rows, [NUM_PAIRS]),
        "files": stream(rows, [2, 9, 1, 5]),
    }


def exact_options(out: Path, **more) -> PAFOConfig:
    sizes = {"per_device_train_batch_size": 3, "logging_steps": 2, "learning_rate": 1e-2, "distillation_loss": "bce"}
    loss = {"eos_token": "[SEP]", "center_rewards_coefficient": CENTER}
    return options(out, **sizes, **loss, **more)


def labeled_pairs() -> Dataset:
    rows = with_margins(make_pairs(history=0))
    return rows.add_column("has_label", [i % 4 != 1 for i in range(len(rows))])


def numbers(metrics: dict) -> dict:
    return {k: v for k, v in metrics.items() if not k.endswith(("_runtime", "_per_second", "_preparation_time"))}


class Counted:
    """A function that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.function(*args, **kwargs)


def train_and_evaluate(out: Path, model: str, kind: str) -> dict:
    peft = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]) if kind == "lora" else None
    found: dict = {}

    def compute_metrics(prediction):
        found["seen"] = {
            "predictions": prediction.predictions.tolist(),
            "group": prediction.label_ids["group"].tolist(),
            "user": prediction.label_ids["user"].tolist(),
            "inputs": [[[t for t in side if t > 0] for side in pair] for pair in prediction.inputs.tolist()],
            "losses": prediction.losses.tolist(),
        }
        return {"mean_of_mine": prediction.predictions.mean(), "rank": 0}

    args = exact_options(out / "run", include_for_metrics=["inputs", "loss"])
    trainer = PAFORewardTrainer(
        model,
        args,
        train_dataset=labeled_pairs(),
        eval_dataset=evaluation_sets(),
        compute_metrics=compute_metrics,
        peft_config=peft,
    )

    # Training: the rows of each step beside what is logged, and how often processes talk and wait.
    steps = []
    add = trainer._steps.add

    def add_and_remember(**columns):
        names = [trainer.groups[i] for i in columns["group_id"].tolist()]
        sums = [columns[name].item() for name in ("bradley_terry", "distillation")]
        steps.append([*columns["rewards"].T.tolist(), int(columns["num_tokens"]), columns["has_label"].tolist(), names, sums])
        add(**columns)

    trainer._steps.add = add_and_remember
    objects = trl_pafo.trainer.pair_metrics.gather_object = Counted(trl_pafo.trainer.pair_metrics.gather_object)
    gather = trainer.accelerator.gather = Counted(trainer.accelerator.gather)
    for_metrics = trainer.accelerator.gather_for_metrics = Counted(trainer.accelerator.gather_for_metrics)
    trainer.train()
    found["steps"] = steps
    found["logs"] = [numbers(log) for log in trainer.state.log_history if "loss" in log]
    found["gathers"] = gather.calls + for_metrics.calls + objects.calls
    trainer.model_wrapped = trainer.model
    trainer.save_model(str(out / "trained"))

    # Evaluation: several sets by name, then the same numbers in other ways.
    objects.calls = 0
    found["evaluate"] = numbers(trainer.evaluate())
    found["gathers_of_evaluate"] = objects.calls
    output = trainer.predict(evaluation_pairs())
    found["predict"] = numbers(output.metrics)
    found["predictions"] = output.predictions.tolist()
    found["predicted_users"] = output.label_ids["user"].tolist()

    trainer.args.eval_accumulation_steps = 2
    trainer.args.dataloader_drop_last = True
    found["accumulated"] = numbers(trainer.evaluate(evaluation_pairs()))
    trainer.args.dataloader_num_workers = 2
    found["workers"] = numbers(trainer.evaluate(stream(evaluation_pairs(), [2, 9, 1, 5])))
    trainer.args.dataloader_num_workers = 0
    trainer.accelerator.even_batches = False
    found["uneven"] = numbers(trainer.evaluate(evaluation_pairs()))
    trainer.accelerator.even_batches = True
    trainer.compute_metrics = None
    found["loss_only"] = numbers(trainer.evaluate(evaluation_pairs()))

    batches: list = []

    def by_batch(prediction, compute_result):
        batches.append([prediction.predictions.shape[0], compute_result])
        return {"pairs_by_batch": len(prediction.label_ids["user"])}

    trainer.compute_metrics = by_batch
    trainer.args.batch_eval_metrics = True
    found["by_batch"] = numbers(trainer.evaluate(evaluation_pairs()))
    found["batches"] = batches
    return found


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
        launch(train_and_evaluate, num_processes, out, model, kind)
        return
    with pytest.MonkeyPatch.context() as patch:
        pair_metrics = trl_pafo.trainer.pair_metrics
        patch.setattr(pair_metrics, "gather_object", pair_metrics.gather_object)  # put back at the end
        (out / "rank0.json").write_text(json.dumps(train_and_evaluate(out, model, kind)))


def rows_of(model: str, out: Path) -> list[dict]:
    """The evaluation pairs, tokenized."""
    trainer = PAFORewardTrainer(model, exact_options(out / "tokens"), eval_dataset=evaluation_pairs())
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
        terry, distilled = (sum(step[5][place] for step in steps) for place in range(2))
        wanted |= {"bradley_terry_loss": terry / sum(row["label"] for row in rows), "distillation_loss": distilled / len(rows)}
        wanted["num_tokens"] = tokens
        assert {key: log[key] for key in wanted} == pytest.approx(wanted, abs=1e-9, nan_ok=True)
    assert len(rows) == 2 * 3 * len(seen)


def test_processes_talk_once_a_log_and_once_an_evaluation(run):
    seen, _ = run
    for rank in seen:
        assert rank["gathers"] == len(rank["logs"])
        assert rank["gathers_of_evaluate"] == len(evaluation_sets())
