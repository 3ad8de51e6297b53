"""GRPO with a fair reward model: each prompt is answered for a user, and rewarded as that user would like it.

    trl-pafo quickstart --output_dir runs/quickstart
    python examples/grpo_fair_reward.py --run runs/quickstart

Training prompts and users are those of the run. The policy reads what the reward model reads of a user, the past pairs, as a system message, so that
one policy can serve users of different tastes. Before and after, it answers test users' prompts; the table says the mean reward by group. All flags of
TRL's GRPOConfig work, and `accelerate launch` does.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, TrlParser

from trl_pafo import FairRewardModel
from trl_pafo.data.messages import content_text
from trl_pafo.models import load_tokenizer, set_threads
from trl_pafo.models.base_models import load_base

DEFAULTS = {
    "output_dir": "runs/grpo",
    "max_steps": 20,
    "per_device_train_batch_size": 16,
    "num_generations": 8,
    "max_completion_length": 48,
    "learning_rate": 5e-5,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 4,
}


@dataclass
class ScriptArguments:
    run: str = field(default="runs/quickstart", metadata={"help": "Folder of a finished run: its data, models and teachers."})
    method: str = field(default="pafo", metadata={"help": "Whose model rewards: pafo, personalized_bt or another of the run."})
    policy: str = field(default="smollm2", metadata={"help": "The policy to start from: smollm2, a folder or a Hub id."})
    num_hidden_layers: int | None = field(
        default=None, metadata={"help": "Keep only the first layers of the policy, for a look."}
    )
    num_test: int = field(default=64, metadata={"help": "Test prompts of each group that are answered before and after."})


def tasks(path: Path, num_of_group: int | None = None) -> Dataset:
    """Prompts for users: what the policy reads (`prompt`), the question, the user's past pairs and group. Each group has as many rows."""
    rows = Dataset.from_parquet(str(path))
    places = {group: np.flatnonzero(np.asarray(rows["group"]) == group) for group in sorted(set(rows["group"]))}
    number = num_of_group or max(map(len, places.values()))
    order = np.stack([np.resize(of_group, number) for of_group in places.values()], axis=1).ravel()  # the groups in turn
    return rows.select(order).map(task, remove_columns=rows.column_names)


def task(row: dict[str, Any]) -> dict[str, Any]:
    """A row for the policy and for the reward model."""
    liked = "\n".join(content_text(past["chosen"]) for past in row["history"][:1])
    question = content_text(row["prompt"])
    prompt = [{"role": "system", "content": f"Answer as in: {liked}"}, {"role": "user", "content": question}]
    return {"prompt": prompt, "question": question, "history": row["history"], "group": row["group"]}


def reward_of(model: FairRewardModel) -> Any:
    """A reward function of GRPOTrainer: what the model says of a completion for the user of the row."""

    def fair_reward(completions: list[Any], question: list[str], history: list[Any], **_: Any) -> list[float]:
        rows = zip(completions, question, history, strict=True)
        requests = [{"prompt": [{"role": "user", "content": q}], "responses": [c], "history": past} for c, q, past in rows]
        return [reward for [reward] in model.score_batch(requests)]

    return fair_reward


def answers(trainer: GRPOTrainer, rows: Dataset) -> list[Any]:
    """A greedy answer of the policy to each row, as a list of one message."""
    tokenizer, model = trainer.processing_class, trainer.model.eval()
    found = []
    for start in range(0, len(rows), 16):
        texts = [
            tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True)
            for p in rows[start : start + 16]["prompt"]
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False).to(
            model.device
        )
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=trainer.args.max_completion_length, do_sample=False)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found += [[{"role": "assistant", "content": text}] for text in texts]
    return found


def judged(run: Path, rows: Dataset, completions: list[Any]) -> dict[str, np.ndarray]:
    """Rewards by group under the mean of the group's own teachers, which no user's history can mislead."""
    group, found = np.asarray(rows["group"]), {}
    for name in sorted(set(group)):
        mine = np.flatnonzero(group == name)
        folders = sorted(path.parent for path in (run / "teachers" / name).rglob("config.json"))
        of_teacher = []
        for folder in folders:
            model = FairRewardModel.from_pretrained(folder)
            requests = [
                {"prompt": [{"role": "user", "content": rows[int(i)]["question"]}], "responses": [completions[i]]} for i in mine
            ]
            of_teacher.append([reward for [reward] in model.score_batch(requests)])
        found[name] = np.mean(of_teacher, axis=0)
    return found


def main() -> None:
    parser = TrlParser((ScriptArguments, GRPOConfig))
    left = parser.set_defaults_with_config(**DEFAULTS, bf16=torch.accelerator.is_available())
    assert not left, left
    script, args = parser.parse_args_and_config()
    set_threads()
    run = Path(script.run)
    trainer = GRPOTrainer(
        model=load_base(AutoModelForCausalLM, script.policy, None, script.num_hidden_layers, dtype=torch.float32),
        reward_funcs=reward_of(FairRewardModel.from_pretrained(run / "models" / script.method)),
        args=args,
        train_dataset=tasks(run / "data/train.parquet"),
        processing_class=load_tokenizer(script.policy),
    )
    test = tasks(run / "data/test.parquet", script.num_test)
    before = judged(run, test, answers(trainer, test))
    trainer.train()
    if trainer.accelerator.is_main_process:
        trainer.save_model()
        after = judged(run, test, answers(trainer, test))
        print(f"\nReward of the answers under the teachers of the user's group, rewarded by {script.method} in training:")
        for group, old in before.items():
            gains = after[group] - old
            means = gains[np.random.default_rng(0).integers(len(gains), size=(10_000, len(gains)))].mean(axis=1)
            low, high = np.quantile(means, [0.025, 0.975])
            print(
                f"    {group}: {old.mean():+.3f} -> {after[group].mean():+.3f}, gain {gains.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
            )


if __name__ == "__main__":
    main()
