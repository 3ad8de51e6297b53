"""What each process does in test_train_on_ranks.py: train a student with teachers, save it, and write down what it saw.

Arguments: a folder with the models of `make_parts`, output folder, and students: "full-checkpoints", "lora-adapters" ...
"""

import gc
import json
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from launcher import leave

sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers

from datasets import Dataset, IterableDataset
from helpers.parts import make_model, make_pairs
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import trl_pafo.teachers.loaded
from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.teachers.loaded import TeacherModels

GROUPS = ("majority", "minority")
NUM_STEPS = 4
GLOBAL_BATCH = 8


def lora() -> LoraConfig:
    return LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"])


def make_parts(folder: Path) -> None:
    """A student, a teacher a group, and a teacher a group that is an adapter of the student."""
    student = make_model("decoder", folder / "student")
    for seed, group in enumerate(GROUPS, 1):
        teacher = AutoModelForSequenceClassification.from_pretrained(
            make_model("decoder", folder / "checkpoints" / group, seed=seed)
        )
        with torch.no_grad():
            teacher.score.weight.mul_(10)  # margins of a size that the loss depends on
        teacher.save_pretrained(folder / "checkpoints" / group)
        torch.manual_seed(10 + seed)
        model = AutoModelForSequenceClassification.from_pretrained(student)
        config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(model, config)
        with torch.no_grad():
            model.score.weight.normal_()
        model.save_pretrained(folder / "adapters" / group)
        AutoTokenizer.from_pretrained(student).save_pretrained(folder / "adapters" / group)


def training_pairs(teachers: str) -> Dataset | IterableDataset:
    # A whole number of batches: accelerate fills up the last one with copies, as it does for RewardTrainer.
    shape = {"num_users": 8, "pairs_per_user": NUM_STEPS * GLOBAL_BATCH // 8}
    if teachers.startswith("stream"):
        return make_pairs(**shape, history=0).map(as_messages).to_iterable_dataset()
    rows = make_pairs(**shape)
    if teachers == "column":
        rows = rows.add_column("teacher_margin", [0.5 * (i % 5 - 1) for i in range(len(rows))])
    return rows


def as_messages(row: dict) -> dict:
    return {k: [{"role": "user" if k == "prompt" else "assistant", "content": row[k]}] for k in ("prompt", "chosen", "rejected")}


def given_teachers(parts: Path, teachers: str) -> dict | None:
    if teachers == "column":
        return None
    folders = {group: parts / ("adapters" if "adapters" in teachers else "checkpoints") / group for group in GROUPS}
    if teachers == "memory":
        return {group: AutoModelForSequenceClassification.from_pretrained(folder) for group, folder in folders.items()}
    return folders


def state_of(model: torch.nn.Module) -> list:
    """What scoring must not change of a model that was given."""
    modes = [module.training for module in model.modules()]
    parameters = [[str(p.device), list(p.shape), p.requires_grad] for p in model.parameters()]
    return [modes, parameters, model.config.pad_token_id]


def evaluation_pairs() -> Dataset:
    return make_pairs(num_users=3, num_minority=1, pairs_per_user=3, seed=5)


def options(out: Path, num_processes: int, **more) -> PAFOConfig:
    common = {
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": GLOBAL_BATCH // num_processes,
        "per_device_eval_batch_size": 4,
        "logging_steps": 1,
        "learning_rate": 2e-3,
        # Adam divides by the size of a gradient: where that is rounding alone, so would be the step.
        "adam_epsilon": 1e-5,
        "max_grad_norm": 1.0,
        "max_length": 256,
        "use_cpu": "ACCELERATE_TORCH_DEVICE" not in os.environ,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        # Near margin 0 the value of bce hardly depends on the teacher, and a wrong teacher would pass.
        "distillation_loss": "mse",
    }
    return PAFOConfig(str(out / "run"), **{**common, **more})


def wrapper_of(trainer: PAFORewardTrainer) -> dict:
    """What the student was really trained in."""
    wrapped = trainer.model_wrapped
    found = {"classes": [kind.__name__ for kind in type(wrapped).__mro__]}
    if hasattr(wrapped, "zero_optimization_stage"):
        found["stage"] = wrapped.zero_optimization_stage()
    return found


@contextmanager
def watched_teachers() -> Iterator[tuple[list, list]]:
    """Weak references to the teachers that are loaded inside, and how each stands in memory."""
    loaded, placed = [], []
    load, place = trl_pafo.teachers.loaded.load_reward_model, TeacherModels._load

    def load_and_remember(*args, **kwargs):
        model = load(*args, **kwargs)
        loaded.append(weakref.ref(model))
        return model

    def place_and_remember(self, *args):
        place(self, *args)
        here = [p.to_local() if isinstance(p, DTensor) else p for p in self._model.parameters()]
        share = sum(p.numel() for p in here) / sum(p.numel() for p in self._model.parameters())
        sharded_layers = sum(isinstance(m, FSDPModule) and "DecoderLayer" in type(m).__name__ for m in self._model.modules())
        placed.append({"share": share, "sharded_layers": sharded_layers, "is_adapter": hasattr(self._model, "peft_config")})

    trl_pafo.teachers.loaded.load_reward_model, TeacherModels._load = load_and_remember, place_and_remember
    try:
        yield loaded, placed
    finally:
        trl_pafo.teachers.loaded.load_reward_model, TeacherModels._load = load, place


def main(parts: Path, out: Path, student: str) -> dict:
    kind, teachers = student.split("-", 1)
    no_history = {"num_history": 0} if teachers.startswith("stream") else {}
    args = options(out, int(os.environ.get("WORLD_SIZE", "1")), **no_history)
    given = given_teachers(parts, teachers)
    before = [state_of(model) for model in given.values()] if teachers == "memory" else []
    with watched_teachers() as (loaded, placed):
        trainer = PAFORewardTrainer(
            str(parts / "student"),
            args,
            train_dataset=training_pairs(teachers),
            teachers=given,
            peft_config=lora() if kind == "lora" else None,
        )
        gc.collect()
        found: dict = {"alive_before_training": sum(model() is not None for model in loaded)}
        if not teachers.startswith("stream"):
            found["margins"] = trainer.train_dataset["teacher_margin"][:]
        if teachers == "memory":
            found["changed"] = [state_of(model) for model in given.values()] != before
        found["cached"] = len(list((out / "run/teacher_margins").glob("*.npy")))
        trainer.train()
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    gc.collect()
    found |= {
        "loaded": len(loaded),
        "placed": placed,
        "alive": sum(model() is not None for model in loaded),
        "optimized": len(optimized),
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "wrapper": wrapper_of(trainer),
    }
    output = trainer.predict(evaluation_pairs())
    found |= {"rewards": output.predictions.tolist(), "accuracy": output.metrics["test_accuracy"]}
    trainer.save_model(str(out / "trained"))
    return found


if __name__ == "__main__":
    parts, out = Path(sys.argv[1]), Path(sys.argv[2])
    for student in sys.argv[3:]:
        found = main(parts, out / student, student)
        (out / student / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))
    leave()
