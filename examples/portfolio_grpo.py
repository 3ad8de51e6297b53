"""A portfolio of LoRA members trained by GRPO: SmolLM2-135M, two rewards, a 2-core CPU.

    python examples/portfolio_grpo.py --output_dir runs/portfolio_grpo
    python examples/portfolio_grpo.py --bf16 true                     (a CPU that is faster in bfloat16)
    accelerate launch examples/portfolio_grpo.py --use_cpu false        (on several GPUs)

The rewards are `brevity` (few words) and `playfulness` (a reward model that is fitted first, on the shipped corpus). Each
member is trained for the weights that the search asks for; an interrupted build goes on with the member that was at work.
All flags of TRL's GRPOConfig work.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from trl import GRPOConfig, TrlParser

from trl_pafo.data.sources.styles import load_styles
from trl_pafo.models import RewardScorer, set_threads
from trl_pafo.palm import (
    GRPOOracle,
    OracleResult,
    RewardScale,
    ScaledReward,
    build_portfolio,
    fit_reward_models,
    member_name,
    score_candidates,
)

TRAIN = """What color is the sky?|Name a fruit that grows on trees.|How many legs does a spider have?|What do bees make?
Where do penguins live?|What is a good breakfast?|Why do cats purr?|How do I boil an egg?|What is a rainbow?
Say hello to my friend Ana.|Is tea better than coffee?|What should I pack for the beach?|How do I fold a shirt?
What is the capital of France?|Which planet is the largest?|How do plants grow?|What is snow?|Can dogs see colors?
How long is a marathon?|What is a good name for a cat?|Why is the sea salty?|What do pandas eat?|How do I sleep better?
What is bread made of?|Who looks after the garden in winter?|What is a poem?|How do birds fly?|What is the moon?
How do I clean a window?|Which season is the warmest?|What is a friend?|Should I take an umbrella?|How do I make tea?
What is a good gift for my aunt?|Why do leaves fall?|How do I learn a song?|What is honey?|What makes people laugh?
Where does chocolate come from?|How do I tie a scarf?""".replace("\n", "|").split("|")
HELD_OUT = """What color is grass?|Name an animal with a long neck.|How many days are in a week?|What do cows drink?
Where do camels live?|What is a good lunch?|Why do dogs bark?|How do I cook rice?|What is thunder?
Say goodbye to my neighbor Tom.|Is a train better than a car?|What should I take on a walk?|How do I wash a jumper?
What is the capital of Italy?|Which animal is the fastest?|How do fish breathe?|What is fog?|Can cats swim?
What is a good name for a dog?|What do rabbits eat?|How do I wake up early?|What is cheese made of?|What is a song?
How do I peel an onion?""".replace("\n", "|").split("|")

DEFAULTS = {
    "output_dir": "runs/portfolio_grpo",
    "max_steps": 20,
    "per_device_train_batch_size": 16,
    "num_generations": 8,
    "max_completion_length": 32,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 2,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "save_strategy": "no",
    "report_to": "none",
    "logging_steps": 4,
}


@dataclass
class ScriptArguments:
    model: str = field(default="smollm2", metadata={"help": "Base model: smollm2, a folder or a Hub id."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Keep only the first layers of the base."})
    max_calls: int = field(default=3, metadata={"help": "Members that are trained at most."})
    num_members: int = field(default=2, metadata={"help": "Members of the portfolio."})
    gap: float = field(default=0.05, metadata={"help": "Stop earlier where the relative gap is certified to be this."})
    num_samples: int = field(default=2, metadata={"help": "Responses a held-out prompt."})


def brevity(completions, **kwargs) -> list[float]:
    """Near 1 for a single word, 0 for 30 or more; 0 for no word too, or a policy would learn to say nothing."""
    words = [len(c[0]["content"].split()) for c in completions]
    return [1 - number / 30 if 0 < number < 30 else 0.0 for number in words]


def playfulness(folder: Path) -> ScaledReward:
    """A reward model of ours that prefers the playful one of five styles, on the scale of the shipped corpus."""
    corpus = load_styles()
    with PartialState().main_process_first():  # one fits it, the others find it
        if not (folder / "playful").exists():
            fit_reward_models(corpus, folder, types=["playful"], num_hidden_layers=2)
    source = str(folder / "playful")
    raw = score_candidates(corpus[:48], {"playful": source})
    return ScaledReward("playfulness", RewardScorer.from_pretrained(source), RewardScale.fit(raw, "sigmoid"))


def prompts(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in texts]})


def gain(member: OracleResult, base: OracleResult, weights: np.ndarray) -> tuple[float, float, float]:
    """Mean gain in w.R over the base and its 95 % interval, from a bootstrap over the held-out prompts (paired)."""
    gains = (np.asarray(member.prompt_values) - np.asarray(base.prompt_values)) @ weights
    means = gains[np.random.default_rng(0).integers(len(gains), size=(10_000, len(gains)))].mean(axis=1)
    return float(gains.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def main() -> None:
    parser = TrlParser((ScriptArguments, GRPOConfig))
    left = parser.set_defaults_with_config(**DEFAULTS, bf16=torch.accelerator.is_available())
    assert not left, left
    script, args = parser.parse_args_and_config()
    set_threads()
    _ = args.device  # sets up the processes
    out = Path(args.output_dir)
    rewards = [brevity, playfulness(out / "reward_models")]
    oracle = GRPOOracle(
        script.model,
        rewards,
        prompts(TRAIN),
        prompts(HELD_OUT),
        out / "grpo",
        args,
        num_samples=script.num_samples,
        num_hidden_layers=script.num_hidden_layers,
    )
    base = oracle.evaluate_base()
    # No `folder` here: the oracle keeps its members, and each process must see the same answers.
    portfolio = build_portfolio(
        oracle,
        len(rewards),
        script.gap,
        num_members=script.num_members,
        max_calls=script.max_calls,
        reward_names=oracle.names,
        oracle_factor="estimate",
        progress=False,
    )
    if PartialState().is_main_process:
        print(f"\nbase: {dict(zip(oracle.names, np.round(base.values, 3).tolist(), strict=True))}")
        for call in portfolio.calls:
            mean, low, high = gain(call.result, base, call.weights)
            print(
                f"w = {np.round(call.weights, 3)}: values {np.round(call.result.values, 3)}, KL {call.result.kl:.1f} nats, w.R "
                f"{base.values @ call.weights:.3f} -> {call.result.values @ call.weights:.3f}, gain {mean:+.3f} [{low:+.3f}, {high:+.3f}]"
            )
            print(f"    {oracle.responses(member_name(call.weights))[0][0][0]!r}")
        print(f"\n{portfolio}")
        portfolio.save(out / "portfolio")
        seconds = oracle.seconds()
        print(f"\nseconds a stage: {json.dumps(seconds)}, together {sum(seconds.values()) / 60:.0f} minutes")
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
