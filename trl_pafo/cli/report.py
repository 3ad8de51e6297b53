"""`trl-pafo report RUN`: the results as one HTML file."""

from dataclasses import dataclass
from typing import Any

from trl_pafo.data.sources.arguments import option


def make_parser(prog: str | None = None) -> Any:
    from trl import TrlParser

    @dataclass
    class ReportArguments:
        output: str | None = option(None, "HTML file to write. Default: RUN/report.html.")

    parser = TrlParser(ReportArguments, prog=prog)  # type: ignore[arg-type]
    parser.add_argument("run", metavar="RUN", help="Folder of a run.")
    return parser


def main(args: Any, positional: Any) -> None:
    from trl_pafo.report.page import write_report

    path = write_report(positional.run, args.output)
    print(f"Report: {path}")
