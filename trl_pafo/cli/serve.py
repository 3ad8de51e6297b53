"""`trl-pafo serve`: the rewards of `trl-pafo score` over HTTP."""

from dataclasses import dataclass, field
from typing import Any

from trl_pafo.cli.score import ScorerArguments


def make_parser(prog: str | None = None) -> Any:
    from trl import TrlParser

    @dataclass
    class ServeArguments(ScorerArguments):
        host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on. Default: this machine alone."})
        port: int = field(default=8000, metadata={"help": "Port to listen on; 0 for any that is free."})
        batch_tokens: int = field(default=8192, metadata={"help": "So many tokens are scored together without further waiting."})
        batch_wait_ms: float = field(default=3, metadata={"help": "Milliseconds that a sequence waits for others."})
        max_body_mb: int = field(default=16, metadata={"help": "MiB of a request, at most."})
        max_items: int = field(default=1024, metadata={"help": "Pairs or responses of a request, at most."})
        max_tokens: int | None = field(
            default=None,
            metadata={"help": "Tokens of a response with its prompt, at most. Default: the model's positions, or 8192."},
        )
        max_queue: int = field(default=1024, metadata={"help": "Requests that wait for their rewards, at most."})

    return TrlParser(ServeArguments, prog=prog)  # type: ignore[arg-type]


def main(args: Any) -> None:
    from trl_pafo.serving.serve import serve

    serve(args)
