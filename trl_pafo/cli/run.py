"""`trl-pafo run`: all stages of PAFO in one folder."""

from typing import Any


def make_parser(prog: str | None = None, short: bool = False) -> Any:
    from trl import ModelConfig

    from trl_pafo.cli.training import training_parser
    from trl_pafo.evaluation.methods import RunArguments

    if short:
        return training_parser((RunArguments,), (ModelConfig,), prog, short)
    from trl_pafo.pipeline.run_options import RunConfig

    return training_parser((RunArguments,), (ModelConfig,), prog, short, RunConfig)


def main(run_args: Any, training_args: Any, model_args: Any) -> None:
    from trl_pafo.models.base_models import set_threads
    from trl_pafo.models.ranks import leave, one_voice
    from trl_pafo.pipeline.run import Run

    set_threads()
    with one_voice():
        run = Run(run_args, training_args, model_args)
        if run_args.only:
            run.do_only(run_args.only)
        else:
            _say(run, run())
    leave()


def _say(run: Any, results: dict[str, Any]) -> None:
    from trl_pafo.data.sources.arguments import data_name
    from trl_pafo.evaluation.methods import TITLES
    from trl_pafo.report.results import verdict_lines
    from trl_pafo.report.tables import plain_path, plain_table, splits_of

    named = {TITLES.get(method, method): summary for method, summary in results["methods"].items()}
    print(f"\nData: {data_name(results['data'])}\n\n{plain_table(named)}")
    if splits_of(results["path"]):
        print(plain_path(results["path"]))
    print("\n" + verdict_lines(results))
    print()
    if results["majority"] != results["minority"]:
        print(f"Picture: {run.folder / 'results/majority_minority.png'}")
    print(f"Table:   {run.folder / 'results/results.md'}")
    print(f"Report:  {run.folder / 'report.html'}")
