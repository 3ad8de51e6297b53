"""`trl-pafo study`: methods x data x seeds x settings, each cell a run, in one table."""

from argparse import ArgumentParser, Namespace
from typing import Any


class _Parser(ArgumentParser):
    """`--config` is the file of a study here, not one of flags."""

    def parse_args_and_config(self, argv: list[str], return_remaining_strings: bool = True) -> tuple[Namespace, list[str]]:
        return self.parse_known_args(argv)


def make_parser(prog: str | None = None) -> _Parser:
    parser = _Parser(prog=prog)
    flags: dict[str, dict[str, Any]] = {
        "config": {"help": "YAML file of the study: methods, data, seeds (docs/study.md)."},
        "output_dir": {"help": "Folder of the study, in place of the file's output_dir."},
        "cells": {"help": "Do a part of the cells, such as 3/10, the third of ten. Default: all."},
        "cells_from": {
            "nargs": "+",
            "help": "Cells that are done already: cell.csv files, folders of runs, or folders with these in them. Without --config: make the "
            "table of these alone.",
        },
    }
    for name, options in flags.items():
        parser.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), dest=name, **options)
    return parser


def main(args: Any) -> None:
    from trl_pafo.errors import ConfigError
    from trl_pafo.study.config import StudyConfig
    from trl_pafo.study.study import TABLE, Study, join_cells

    if args.config is None:
        if not args.cells_from or not args.output_dir:
            raise ConfigError(
                "Give --config: the YAML file of a study; or --cells_from and --output_dir, to join cells that are done."
            )
        if args.cells:
            raise ConfigError("--cells: no effect without --config. Leave it out.")
        join_cells(args.cells_from, args.output_dir)
        print(f"Table: {args.output_dir}/{TABLE}")
        return
    study = Study(StudyConfig.read(args.config, args.output_dir), args.cells, args.cells_from or ())
    study()
    print(f"Table: {study.folder / TABLE}")
