"""`trl-pafo run`: all stages of PAFO in one folder."""

from typing import Any


def make_parser(prog: str | None = None) -> Any:
    from trl import ModelConfig, TrlParser

    from trl_pafo.arguments import RunArguments
    from trl_pafo.config import PAFOConfig

    parser = TrlParser((RunArguments, PAFOConfig, ModelConfig), prog=prog)  # type: ignore[arg-type]
    parser.set_defaults_with_config(lora_task_type="SEQ_CLS")  # else an adapter loses its reward head
    return parser


def main(run_args: Any, training_args: Any, model_args: Any) -> None:
    from trl_pafo.arguments import TITLES
    from trl_pafo.evaluation import verdict_lines
    from trl_pafo.models import set_threads
    from trl_pafo.report.tables import plain_table
    from trl_pafo.stages import Run

    set_threads()
    run = Run(run_args, training_args, model_args)
    results = run()
    named = {TITLES.get(method, method): summary for method, summary in results["methods"].items()}
    print("\n" + plain_table(named, results["majority"], results["minority"]))
    print("\n" + verdict_lines(results))
    print(f"\nPicture: {run.folder / 'results/majority_minority.png'}\nTable:   {run.folder / 'results/results.md'}")
    print(f"Report:  {run.folder / 'report.html'}")
