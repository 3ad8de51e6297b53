"""GRPO with a fair reward model and with the reference: who gets better answers?

    trl-pafo quickstart --output_dir runs/quickstart
    python examples/grpo_fair_reward.py --run runs/quickstart
    python examples/grpo_fair_reward.py --run runs/quickstart --methods pafo   (one policy)

Training prompts and users are those of the run. The policy reads what the reward model reads of a user, the past pairs, as a system message, so that
one policy can serve users of different tastes. Each reward model trains a policy of its own, from the same start. Before and after, policies answer test
users' prompts; the table says how the teachers of the user's group like the answers, `answers.jsonl` holds them. All flags of TRL's GRPOConfig work
(`--bf16 true` on a CPU that is faster in bfloat16), and `accelerate launch` does.
"""

import copy
import json
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
    methods: list[str] = field(
        default_factory=lambda: ["personalized_bt", "pafo"],
        metadata={
            "help": "Whose models of the run reward, a policy each. The policies of the others are compared with the first."
        },
    )
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
    return {"prompt": prompt, "question": question, "history": row["history"], "group": row["group"], "user": row["user"]}


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


def judged(run: Path, rows: Dataset, completions: list[Any]) -> np.ndarray:
    """The mean reward of each answer under the teachers of its user's group, which no user's history can mislead."""
    group, found = np.asarray(rows["group"]), np.zeros(len(rows))
    for name in sorted(set(group)):
        mine = np.flatnonzero(group == name)
        requests = [
            {"prompt": [{"role": "user", "content": rows[int(i)]["question"]}], "responses": [completions[i]]} for i in mine
        ]
        folders = sorted(path.parent for path in (run / "teachers" / name).rglob("config.json"))
        of_teacher = [FairRewardModel.from_pretrained(folder).score_batch(requests) for folder in folders]
        found[mine] = np.mean(of_teacher, axis=0)[:, 0]
    return found


def difference(rewards: np.ndarray, others: np.ndarray, user: np.ndarray) -> str:
    """Mean difference with a 95 % interval, from a bootstrap over users."""
    of_user = [(rewards - others)[user == name] for name in sorted(set(user))]
    sums, counts = np.array([[gains.sum(), len(gains)] for gains in of_user]).T
    drawn = np.random.default_rng(0).integers(len(of_user), size=(10_000, len(of_user)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{np.mean(rewards - others):+.3f} [{low:+.3f}, {high:+.3f}]"


def main() -> None:
    parser = TrlParser((ScriptArguments, GRPOConfig))
    left = parser.set_defaults_with_config(**DEFAULTS, bf16=torch.accelerator.is_available())
    assert not left, left
    script, args = parser.parse_args_and_config()
    set_threads()
    run, out = Path(script.run), Path(args.output_dir)
    models = {method: FairRewardModel.from_pretrained(run / "models" / method) for method in script.methods}
    train, test = tasks(run / "data/train.parquet"), tasks(run / "data/test.parquet", script.num_test)
    answered: dict[str, list[Any]] = {}
    for method, model in models.items():
        args = copy.copy(args)
        args.output_dir = str(out / method)
        trainer = GRPOTrainer(
            model=load_base(AutoModelForCausalLM, script.policy, None, script.num_hidden_layers, dtype=torch.float32),
            reward_funcs=reward_of(model),
            args=args,
            train_dataset=train,
            processing_class=load_tokenizer(script.policy),
        )
        if not answered:
            answered["untrained"] = answers(trainer, test)
        trainer.train()
        trainer.save_model()
        answered[method] = answers(trainer, test)
    if not trainer.accelerator.is_main_process:
        return
    rewards = {policy: judged(run, test, found) for policy, found in answered.items()}
    with open(out / "answers.jsonl", "w", encoding="utf-8") as file:
        for i, row in enumerate(test):
            found = {policy: {"answer": answered[policy][i][0]["content"], "reward": rewards[policy][i]} for policy in answered}
            file.write(json.dumps({key: row[key] for key in ("question", "user", "group")} | found) + "\n")
    user, group, first = np.asarray(test["user"]), np.asarray(test["group"]), script.methods[0]
    print("\nReward of the answers under the teachers of the user's group, by the reward model that trained the policy:")
    for name in sorted(set(group)):
        mine = group == name
        print(f"    {name}: untrained {rewards['untrained'][mine].mean():+.3f}")
        for method in script.methods:
            gain = difference(rewards[method][mine], rewards["untrained"][mine], user[mine])
            line = f"        {method}: {rewards[method][mine].mean():+.3f}, gain {gain}"
            if method != first:
                line += f"; against {first} {difference(rewards[method][mine], rewards[first][mine], user[mine])}"
            print(line)


if __name__ == "__main__":
    main()
