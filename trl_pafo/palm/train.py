"""What `trl-pafo portfolio train` does: reward models and prompts in, trained members and their portfolio out."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from datasets import Dataset
from peft import LoraConfig

from trl_pafo.models.ranks import on_first
from trl_pafo.palm.build import build_portfolio
from trl_pafo.palm.commands import plot
from trl_pafo.palm.core import OracleResult
from trl_pafo.palm.oracles.candidates import SCALE_FILE
from trl_pafo.palm.oracles.grpo import GRPOOracle
from trl_pafo.palm.oracles.judging import RewardFunction
from trl_pafo.palm.oracles.texts import ScaledReward
from trl_pafo.palm.portfolio import Portfolio


def train_portfolio(
    args: Any, training_args: Any, rewards: Sequence[RewardFunction | str], train_dataset: Dataset, eval_dataset: Dataset
) -> str:
    """Train members until the tolerance is certified, and write `portfolio/` beside them; what is to be said of it.

    All processes of a launcher call it. Members that are complete are kept: an interrupted build goes on.
    """
    oracle = GRPOOracle(
        args.model_name_or_path,
        rewards,
        train_dataset,
        eval_dataset,
        training_args.output_dir,
        training_args,
        LoraConfig(
            r=args.lora_r,
            lora_alpha=args.lora_alpha,
            target_modules=args.lora_target_modules[0] if len(args.lora_target_modules) == 1 else args.lora_target_modules,
            task_type="CAUSAL_LM",
        ),
        num_samples=args.num_samples,
        eval_batch_size=training_args.per_device_eval_batch_size,
        num_hidden_layers=args.num_hidden_layers,
        reward_names=args.reward_names,
    )
    base = oracle.evaluate_base()
    # Without `folder`: the oracle keeps its members, and each process must see the same answers.
    portfolio = build_portfolio(
        oracle,
        len(oracle.names),
        args.gap,
        num_members=args.num_members,
        max_calls=args.max_calls,
        reward_names=oracle.names,
        oracle_factor="estimate",
        progress=False,
    )
    return on_first(lambda: _written(portfolio, oracle, base))


def _written(portfolio: Portfolio, oracle: GRPOOracle, base: OracleResult) -> str:
    folder = oracle.path / "portfolio"
    portfolio.save(folder)
    # `choose --history` scores past pairs, which functions of completions cannot.
    if oracle.scale is not None and all(isinstance(reward, ScaledReward) for reward in oracle.rewards):
        oracle.scale.save(folder / SCALE_FILE)
    pictures, _ = plot(SimpleNamespace(portfolio=str(folder), users=None, output_dir=None))
    seconds = sum(oracle.seconds().values())
    start = ", ".join(f"{name} {value:.3f}" for name, value in zip(oracle.names, np.asarray(base.values), strict=True))
    return "\n".join(
        [
            f"base: {start}",
            *(_gain(call.weights, call.result, base) for call in portfolio.calls),
            f"\n{portfolio}\n\n{portfolio.promise}\n",
            f"Trainings and evaluations took {seconds:.0f} s.",
            f"Portfolio: {folder}",
            pictures,
        ]
    )


def _gain(weights: np.ndarray, member: OracleResult, base: OracleResult) -> str:
    """How much better a member is than what it was trained from, on the held-out prompts."""
    before, after = np.asarray(base.values), np.asarray(member.values)
    return (
        f"trained for w = {np.round(weights, 3)}: rewards {np.round(after, 3)}, KL {member.kl:.1f} nats, w.R "
        f"{before @ weights:.3f} -> {after @ weights:.3f}"
    )
