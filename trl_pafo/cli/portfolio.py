"""`trl-pafo portfolio build | train | certify | choose | plot | compare | export`: a few policies for every preference weight."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_pafo.cli import HELP, commands_page, parse, refuse, show
from trl_pafo.data.sources.arguments import option

COMMANDS = {
    "build": "search, prune and certify, from rewards of candidate responses or a table of policies",
    "train": "the same, from reward models: members are adapters that TRL's GRPOTrainer trains",
    "certify": "the worst case over all weights, of a portfolio or of some policies of a table",
    "choose": "the member for weights, pairwise answers, a preference history, or each user of a population",
    "plot": "the weight simplex with its cells, the gap over it, the usage",
    "compare": "PALM against uniform and random weights at equal size",
    "export": "copy trained members into one folder that peft and vLLM load, with a card",
}


@dataclass
class _Oracle:
    candidates: str | None = option(None, "Rewards of candidate responses: JSON Lines, one line per prompt.")
    policies: str | None = option(
        None, "CSV of policies that exist: policy, kl, w_NAME, a column for each reward. With --candidates: known beforehand."
    )
    normalize: str = option("none", "Raw rewards of --candidates into [0, 1]: none, min_max or sigmoid; the scale is kept.")
    reward_names: list[str] | None = option(None, "Names of the rewards, in the order of the weights.")
    reward_range: list[float] | None = option(None, "Least and greatest value of a reward, which become 0 and 1, such as 1 5.")
    beta: float = option(0.0, "Weight of the KL term: the objective is w.R - beta KL.")


@dataclass
class BuildArguments(_Oracle):
    epsilon: float = option(0.05, "Relative tolerance; 0 to use only the additive one.")
    delta: float = option(0.0, "Additive tolerance, in units of the rewards.")
    num_members: int | None = option(None, "This many members with the least gap, whatever it is.")
    search: str = option("corners", "corners, or grid: the structured grid (needs delta > 0 and beta = 0).")
    users: str | None = option(None, "JSON Lines of users (weights, group): build for these users only.")
    max_calls: int = option(1000, "Calls of the oracle at most.")
    output_dir: str | None = option(None, "Folder for portfolio.json; an interrupted build goes on there.")


@dataclass
class _TrainOptions:
    model_name_or_path: str | None = option(None, "Base of all members: a Hub id or a folder.")
    num_hidden_layers: int | None = option(None, "Keep only the first layers of the base.")
    rewards: list[str] | None = option(
        None,
        "Folders or Hub ids of reward models, or dotted paths of reward functions with values in [0, 1], such as my_rewards.brevity, in the "
        "order of the weights.",
    )
    reward_names: list[str] | None = option(None, "Their names. Default: the last parts of --rewards.")
    gap: float = option(0.05, "Relative tolerance: train until it is certified. (GRPOConfig has an --epsilon of its own.)")
    num_members: int | None = option(None, "This many members with the least gap, whatever it is.")
    max_calls: int = option(20, "Members that are trained at most.")
    num_samples: int = option(1, "Responses to each held-out prompt, by which a member is judged.")
    lora_r: int = option(16, "Rank of the adapters.")
    lora_alpha: int = option(32, "Scale of the adapters.")
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "Modules that get an adapter."}
    )


@dataclass
class CertifyArguments:
    portfolio: str | None = option(None, "Folder of a portfolio.")
    policies: str | None = option(None, "CSV of policies, in place of --portfolio.")
    members: list[str] | None = option(None, "With --policies: names (or rows, from 0 on) of the policies that are served.")
    reward_names: list[str] | None = option(None, "Names of the rewards of a table, in the order of the weights.")
    reward_range: list[float] | None = option(None, "With --policies: least and greatest value of a reward.")
    beta: float = option(0.0, "With --policies: weight of the KL term.")
    num_resamples: int = option(200, "Resamples of the prompts for the interval, where values are known by prompt; 0: none.")
    output: str | None = option(None, "JSON file to write; must not exist.")


@dataclass
class ChooseArguments:
    portfolio: str | None = option(None, "Folder of a portfolio.")
    weights: list[float] | None = option(None, "Weights of the rewards, adding up to 1.")
    answers: str | None = option(
        None, 'JSON Lines of answers: {"first": [...], "second": [...], "liked": "first"}, rewards of both.'
    )
    tolerance: float = option(0.0, "With --answers: options whose worth differs by no more may be mistaken.")
    sharpness: float | None = option(
        None,
        "Answers are sometimes wrong: right with chance sigmoid(sharpness x difference of worth). Default: answers never are, histories 10.",
    )
    history: str | None = option(None, "JSON Lines of past pairs: prompt, chosen, rejected, optionally user and group.")
    reward_models: list[str] | None = option(
        None, "With --history: folders or Hub ids of reward models, in the order of the rewards."
    )
    users: str | None = option(None, "JSON Lines of users: weights, optionally group and user.")
    output: str | None = option(None, "JSON file to write; must not exist.")


@dataclass
class PlotArguments:
    portfolio: str | None = option(None, "Folder of a portfolio.")
    users: str | None = option(
        None, "JSON Lines of users to show: weights, optionally group. Default: 1,000 drawn evenly, for the usage."
    )
    output_dir: str | None = option(None, "Folder for the pictures. Default: that of the portfolio.")


@dataclass
class CompareArguments(_Oracle):
    portfolio: str | None = option(None, "Folder of a portfolio that was built from --candidates or --policies.")
    beta: float = option(None, "Weight of the KL term. Default: that of the portfolio.")
    max_size: int = option(8, "Sizes 1 to this.")
    num_seeds: int = option(10, "Draws of the baselines.")
    output_dir: str | None = option(None, "Folder for comparison.json and gap_by_size.png; without it only the table is printed.")


@dataclass
class ExportArguments:
    portfolio: str | None = option(None, "Folder of a portfolio whose policies are folders of adapters.")
    output_dir: str | None = option(None, "New folder.")
    base_model: str | None = option(None, "What the adapters are loaded on, such as a Hub id. Default: what they name.")


_EPILOG = (
    "The flags of TRL's GRPOConfig are taken as well: --output_dir, --max_steps, --learning_rate, --num_generations, "
    "--max_completion_length, --beta, --use_cpu and many more. `%(prog)s --help-all` lists them."
)
_INPUTS = ("portfolio", "candidates", "policies", "users", "answers", "history")
_ARGUMENTS = {
    "build": BuildArguments,
    "certify": CertifyArguments,
    "choose": ChooseArguments,
    "plot": PlotArguments,
    "compare": CompareArguments,
    "export": ExportArguments,
}


class _Parser:
    """Hands the flags to the parser of the command behind `portfolio`."""

    def __init__(self, prog: str, short: bool):
        self.prog, self.short = prog, short

    def of(self, name: str) -> Any:
        """The parser of a command behind `portfolio`."""
        from trl import TrlParser

        if name == "train":
            return _train_parser(f"{self.prog} {name}", self.short)
        return TrlParser(_ARGUMENTS[name], prog=f"{self.prog} {name}")  # type: ignore[arg-type]

    def parse_args_and_config(self, argv: list[str], return_remaining_strings: bool = True) -> tuple[str, Any, list[str]]:
        if not argv or argv[0] in HELP:
            show(commands_page(self.prog, COMMANDS))
            raise SystemExit(0)
        name = argv[0]
        if name not in COMMANDS:
            raise ValueError(f"unknown command {name!r}; choose one of {', '.join(COMMANDS)}.")
        parser = self.of(name)
        parser.error = refuse
        return name, *parse(parser, argv[1:]), []  # type: ignore[return-value]


def make_parser(prog: str | None = None, short: bool = False) -> _Parser:
    return _Parser(prog or "trl-pafo portfolio", short)


def _train_parser(prog: str, short: bool) -> Any:
    from trl import ScriptArguments, TrlParser

    @dataclass
    class TrainArguments(_TrainOptions, ScriptArguments):
        pass

    if short:
        return TrlParser(TrainArguments, prog=prog, usage="%(prog)s [--config FILE.yaml] [flags]", epilog=_EPILOG)  # type: ignore[arg-type]
    from trl import GRPOConfig

    return TrlParser((TrainArguments, GRPOConfig), prog=prog)  # type: ignore[arg-type]


def main(name: str, args: Any, *more: Any) -> None:
    from trl_pafo.palm import commands
    from trl_pafo.storage.files import refuse_existing, write_text

    if name == "train":
        _train(args, *more)
        return
    output = getattr(args, "output", None)
    if output:
        refuse_existing(output)
    text, result = getattr(commands, name)(args)
    inputs = {name: getattr(args, name, None) for name in _INPUTS}
    print(f"Data: {', '.join(f'{name} {path}' for name, path in inputs.items() if path)}\n\n{text}")
    if output:
        write_text(Path(output), json.dumps(result, indent=2) + "\n")
        print(f"Written: {output}")


def _train(args: Any, training_args: Any) -> None:
    from trl_pafo.cli.training import check_splits, load_named
    from trl_pafo.errors import ConfigError
    from trl_pafo.models.ranks import all_processes
    from trl_pafo.palm.train import train_portfolio

    missing = [f"--{name}" for name in ("model_name_or_path", "rewards", "dataset_name") if not getattr(args, name)]
    if missing:
        raise ConfigError(f"Give {', '.join(missing)}; `trl-pafo portfolio train --help` says what each is.")
    if args.dataset_streaming:
        raise ConfigError("--dataset_streaming: members are trained on the same prompts again and again. Leave it out.")
    splits = args.dataset_train_split, args.dataset_test_split
    rewards = [_reward(name) for name in args.rewards]
    with all_processes():
        dataset = load_named(args)
        check_splits(dataset, *splits)
        print(train_portfolio(args, training_args, rewards, *(dataset[split] for split in splits)))


def _reward(name: str) -> Any:
    """A reward function by its dotted path, as `trl grpo` finds it; else the folder or Hub id of a reward model."""
    from trl_pafo.errors import ConfigError
    from trl_pafo.evaluation.reward_sources import load_function

    if "." not in name or "/" in name or Path(name).exists():
        return name
    try:
        return load_function(":".join(name.rsplit(".", 1)), "the function").call
    except ConfigError as error:
        raise ConfigError(
            f"--rewards {name} is no folder, no Hub id, and no function that can be imported from here: {error}"
        ) from error
