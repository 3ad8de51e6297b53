"""`trl-pafo report RUN [RUN ...]`: the results as one HTML file, or a comparison of several runs."""

from dataclasses import dataclass, field
from typing import Any


def make_parser(prog: str | None = None) -> Any:
    from trl import TrlParser

    @dataclass
    class ReportArguments:
        output: str | None = field(
            default=None, metadata={"help": "HTML file to write. Default: RUN/report.html; required for several runs."}
        )
        inspect: bool = field(
            default=True,
            metadata={"help": "Score a sample of test pairs under other groups' histories, where it is not done. One run only."},
        )

    parser = TrlParser(ReportArguments, prog=prog)  # type: ignore[arg-type]
    parser.add_argument("runs", nargs="+", metavar="RUN", help="Folder of a run, or an --output_dir of `trl-pafo evaluate`.")
    return parser


def main(args: Any, positional: Any) -> None:
    from trl_pafo.report.page import write_report

    path = write_report(positional.runs, args.output, inspect=args.inspect)
    print(f"Report: {path}")
