"""`trl-pafo score`: raw rewards for a JSONL file of pairs or responses (with histories), or for lines as they come."""

from argparse import SUPPRESS
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ScorerArguments:
    """Which model gives rewards, and what of the users it is shown."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Folder or Hub id of a reward model or adapter."})
    users: str | None = field(
        default=None,
        metadata={"help": "JSONL of past pairs (user, prompt, chosen, rejected), newest last. Rows then name their user."},
    )
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16 mixed precision."})
    num_history: int | None = field(default=None, metadata={"help": "Past pairs in the prompt. Default: all that are given."})
    history_max_tokens: int | None = field(default=None, metadata={"help": "Token budget of the history."})
    history_fields: list[str] | None = field(default=None, metadata={"help": "What of a past pair is shown."})


def make_parser(prog: str | None = None) -> Any:
    from trl import TrlParser

    @dataclass
    class ScoreArguments(ScorerArguments):
        input: str | None = field(
            default=None,
            metadata={
                "help": "JSONL with prompt and response (or chosen and rejected), optional history; - answers standard input."
            },
        )
        output: str | None = field(default=None, metadata={"help": "JSONL to write; must not exist. Default: standard output."})
        batch_size: int = field(default=32, metadata={"help": "Responses in a forward pass."})

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
