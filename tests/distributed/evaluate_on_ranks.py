"""What each process does in test_exact_on_ranks.py: train and evaluate in several ways, and write down what it saw.

Arguments: folder of the model, output folder, "full" or "lora".
"""

import json
import os
import sys
from pathlib import Path

from launcher import leave

sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers

from datasets import Dataset, IterableDataset
from helpers.parts import make_pairs
from peft import LoraConfig

import trl_pafo.trainer.pair_metrics
from trl_pafo import PAFOConfig, PAFORewardTrainer

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


def options(out: Path, **more) -> PAFOConfig:
    common = {
        "max_steps": 4,
        "per_device_train_batch_size": 3,
        "per_device_eval_batch_size": 4,
        "logging_steps": 2,
        "learning_rate": 1e-2,
        "max_length": 256,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "eos_token": "[SEP]",
        "counterfactual_share": 0.0,
        "center_rewards_coefficient": 0.02,
    }
    return PAFOConfig(str(out), **{**common, **more})


def training_pairs() -> Dataset:
    rows = make_pairs(history=0)
    rows = rows.add_column("teacher_margin", [0.5 * (i % 5 - 1) for i in range(len(rows))])
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


def main(model: str, out: Path, kind: str) -> dict:
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

    args = options(out / "run", include_for_metrics=["inputs", "loss"])
    trainer = PAFORewardTrainer(
        model,
        args,
        train_dataset=training_pairs(),
        eval_dataset=evaluation_sets(),
        compute_metrics=compute_metrics,
        peft_config=peft,
    )

    # Training: the rows of each step beside what is logged, and how often processes talk and wait.
    steps = []
    add = trainer._steps.add

    def add_and_remember(**columns):
        names = [trainer.groups[i] for i in columns["group_id"].tolist()]
        sums = [columns[name].item() for name in ("bradley_terry", "distillation", "weight")]
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


if __name__ == "__main__":
    model, out, kind = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    result = main(model, out, kind)
    (out / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(result))
    leave()
