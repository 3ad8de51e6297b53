"""`trl-pafo audit`: before any PAFO, what a dataset holds, whom a shared model serves worse, and whether PAFO can help."""

from typing import Any


def make_parser(prog: str | None = None) -> Any:
    from trl import TrlParser

    from trl_pafo.audit.options import AuditArguments

    return TrlParser(AuditArguments, prog=prog)  # type: ignore[arg-type]


def main(args: Any) -> None:
    from trl_pafo.audit.audit import run_audit
    from trl_pafo.audit.output import check_output, write_audit
    from trl_pafo.audit.tables import text_report
    from trl_pafo.models.base_models import set_threads

    if args.output_dir:
        check_output(args.output_dir)
    set_threads()
    result = run_audit(args)
    print(text_report(result))
    if args.output_dir:
        print(f"Audit: {write_audit(result, args.output_dir)}/audit.md")
