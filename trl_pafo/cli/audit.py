"""`trl-pafo audit`: before training, what a dataset holds, whom a shared model serves worse, and whether PAFO can help."""

from typing import Any


def make_parser(prog: str | None = None) -> Any:
    from trl import TrlParser

    from trl_pafo.audit import AuditArguments

    return TrlParser(AuditArguments, prog=prog)  # type: ignore[arg-type]


def main(args: Any) -> None:
    from trl_pafo.audit.audit import check_output, run_audit, write_audit
    from trl_pafo.audit.text import markdown_report
    from trl_pafo.models.base_models import set_threads
    from trl_pafo.models.ranks import all_processes, is_first, on_first

    with all_processes() as processes:
        if args.output_dir:
            on_first(lambda: check_output(args.output_dir))
        set_threads()
        result = run_audit(args, processes)
        print(markdown_report(result))
        if args.output_dir and is_first():
            print(f"Audit: {write_audit(result, args.output_dir)}/audit.md")
