"""`trl-pafo evaluate`: group and user fairness of reward models of any training on test pairs, beside each other."""

from dataclasses import dataclass, field
from typing import Any

from trl_pafo.data.sources.arguments import option


def make_parser(prog: str | None = None) -> Any:
    from trl import TrlParser

    from trl_pafo.evaluation.options import RewardModelArguments

    @dataclass
    class EvaluateArguments(RewardModelArguments):
        dataset_name: str | None = field(
            default=None,
            metadata={
                "help": "Pairs: a folder of `trl-pafo prepare`, a file or Hub id of any form that `prepare` reads.",
                "aliases": ["--data_path"],
            },
        )
        dataset_split: str | None = option(None, "Split of a folder or Hub id. Default: test.")
        benchmark: str | None = option(
            None,
            "The pairs are a public benchmark in its own schema: personalized_rewardbench or personal_rewardbench. Its own measures "
            "are reported too.",
        )
        columns: list[str] | None = option(None, "What columns are: user=NAME prompt=NAME ...; most are recognized.")
        preferred_values: list[str] | None = option(None, "Values of the column `preferred`: a=VALUE b=VALUE tie=VALUE.")
        minority_quantile: float | None = option(
            None, "Without a column group: this share of users, with the lowest support rates, are the minority."
        )
        minority_threshold: float | None = option(None, "Or: users with a support rate below it are the minority.")
        reference: str | None = option(
            None, "One of the models, or a further one, that the others are compared with. Default: the first of several."
        )
        output_dir: str | None = option(None, "Write results.json and the rewards here; must not exist.")
        num_history: int | None = option(None, "Past pairs in the prompt. Default: as many as in the model's training.")
        reference_num_history: int | None = option(None, "Past pairs that the reference alone is shown.")
        history_max_tokens: int | None = option(None, "Token budget of the history.")
        history_fields: list[str] | None = option(None, "What of a past pair is shown.")
        num_resamples: int = option(1000, "Bootstrap resamples over users.")

    return TrlParser(EvaluateArguments, prog=prog)  # type: ignore[arg-type]


def main(args: Any) -> None:
    from trl_pafo.errors import ConfigError
    from trl_pafo.evaluation.evaluate import evaluate_models
    from trl_pafo.models.ranks import all_processes, on_first
    from trl_pafo.storage.files import refuse_existing

    options = vars(args).copy()
    for name in ("model_name_or_path", "score_columns", "reward_function"):
        del options[name]
    data, split = options.pop("dataset_name"), options.pop("dataset_split")
    if not data:
        raise ConfigError("Give --dataset_name: a folder of `trl-pafo prepare`, a file, or a Hub id.")
    with all_processes() as processes:
        if args.output_dir:  # of which else the first alone knew
            on_first(lambda: refuse_existing(args.output_dir, "--output_dir"))
        _say(args, evaluate_models(args.sources(), data, split=split, processes=processes, **options))


def _say(args: Any, results: dict[str, Any]) -> None:
    from trl_pafo.report.tables import plain_table

    print(f"Data: {results['dataset']}\n")
    print(plain_table(results["methods"], worst_group=True))
    for name, measures in results.get("own_measures", {}).items():
        print(
            f"{name} by {results['benchmark']}'s own measures: {', '.join(f'{key} {value:.4g}' for key, value in measures.items())}"
        )
    has_users = "num_users" in next(iter(results["methods"].values()))
    if results["majority"] is None and not args.benchmark:
        agreement = ", or make groups of the users' agreement (--minority_quantile 0.2)" if has_users else ""
        print(f"The data have no column `group`, so nothing is said of groups. Name it (--columns group=COLUMN){agreement}.")
    if not has_users:
        name_it = "" if args.benchmark else " Name it (--columns user=COLUMN)."
        print(
            "The data have no column `user`, so each pair counts as another person's: intervals are too narrow if people have several."
            + name_it
        )
    for name, verdict in results["verdicts"].items():
        print(f"\n{name} against {results['reference']}: {verdict['sentence']}")
    if args.output_dir:
        print(f"\nResults: {args.output_dir}/results.json")
