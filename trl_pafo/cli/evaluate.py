"""`trl-pafo evaluate`: group and user fairness of a saved reward model on test pairs, alone or against another model."""

from dataclasses import dataclass, field
from typing import Any


def make_parser(prog: str | None = None) -> Any:
    from trl import TrlParser

    @dataclass
    class EvaluateArguments:
        model_name_or_path: str | None = field(default=None, metadata={"help": "Folder or Hub id of a reward model or adapter."})
        dataset_name: str | None = field(
            default=None, metadata={"help": "A folder of `trl-pafo prepare`, a JSONL or Parquet file of pairs, or a Hub id."}
        )
        dataset_split: str | None = field(default=None, metadata={"help": "Split of a folder or Hub id. Default: test."})
        reference: str | None = field(default=None, metadata={"help": "A second model; the verdict compares the first with it."})
        output_dir: str | None = field(
            default=None, metadata={"help": "Write results.json and the rewards here; must not exist."}
        )
        batch_size: int = field(default=32, metadata={"help": "Pairs in a forward pass."})
        bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16 mixed precision."})
        num_history: int | None = field(default=None, metadata={"help": "Past pairs in the prompt. Default: all that are given."})
        history_max_tokens: int | None = field(default=None, metadata={"help": "Token budget of the history."})
        history_fields: list[str] | None = field(default=None, metadata={"help": "What of a past pair is shown."})
        num_resamples: int = field(default=1000, metadata={"help": "Bootstrap resamples over users."})

    return TrlParser(EvaluateArguments, prog=prog)  # type: ignore[arg-type]


def main(args: Any) -> None:
    from trl_pafo.evaluation.evaluate import evaluate_models
    from trl_pafo.report.tables import plain_table

    results = evaluate_models(args)
    print(f"Data: {results['dataset']}\n")
    print(plain_table(results["methods"]))
    if results["majority"] is None:
        print("The data have no column `group`, so nothing is said of groups.")
    if "num_users" not in next(iter(results["methods"].values())):
        print(
            "The data have no column `user`, so each pair counts as another person's: intervals are too narrow if people have several."
        )
    for verdict in results["verdicts"].values():
        print("\n" + verdict["sentence"])
    if args.output_dir:
        print(f"\nResults: {args.output_dir}/results.json")
