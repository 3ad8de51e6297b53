"""`trl-pafo score`: raw rewards for a JSONL file of pairs or responses (with histories), or for lines as they come."""

from argparse import SUPPRESS
from dataclasses import dataclass
from typing import Any

from trl_pafo.data.sources.arguments import option


@dataclass
class ScorerArguments:
    """Which model gives rewards, and what of the users it is shown."""

    model_name_or_path: str | None = option(None, "Folder or Hub id of a reward model or adapter.")
    users: str | None = option(
        None, "JSONL of past pairs (user, prompt, chosen, rejected), newest last. Rows then name their user."
    )
    bf16: bool = option(False, "Compute in bfloat16 mixed precision.")
    num_history: int | None = option(None, "Past pairs in the prompt. Default: as many as in the model's training.")
    history_max_tokens: int | None = option(None, "Token budget of the history.")
    history_fields: list[str] | None = option(None, "What of a past pair is shown.")


def make_parser(prog: str | None = None) -> Any:
    from trl import TrlParser

    @dataclass
    class ScoreArguments(ScorerArguments):
        input: str | None = option(
            None, "JSONL with prompt and response (or chosen and rejected), optional history; - answers standard input."
        )
        output: str | None = option(None, "JSONL to write; must not exist. Default: standard output.")
        batch_size: int = option(32, "Responses in a forward pass.")

    parser = TrlParser(ScoreArguments, prog=prog)  # type: ignore[arg-type]
    parser.add_argument("input", nargs="?", default=SUPPRESS, metavar="INPUT", help="The same as --input.")
    return parser


def main(args: Any) -> None:
    from trl_pafo.models.ranks import all_processes

    with all_processes() as processes:
        if args.input == "-":
            from trl_pafo.evaluation.score_lines import score_lines

            score_lines(args, processes)
        else:
            from trl_pafo.evaluation.score_file import score_file

            score_file(args, processes)
