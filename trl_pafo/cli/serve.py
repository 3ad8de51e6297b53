"""`trl-pafo serve`: the rewards of `trl-pafo score` over HTTP."""

from dataclasses import dataclass
from typing import Any

from trl_pafo.cli.score import ScorerArguments
from trl_pafo.data.sources.arguments import option


def make_parser(prog: str | None = None) -> Any:
    from trl import TrlParser

    @dataclass
    class ServeArguments(ScorerArguments):
        host: str = option("127.0.0.1", "Address to listen on. Default: this machine alone.")
        port: int = option(8000, "Port to listen on; 0 for any that is free.")
        batch_tokens: int = option(8192, "So many tokens are scored together without further waiting.")
        batch_wait_ms: float = option(3, "Milliseconds that a sequence waits for others.")
        max_body_mb: int = option(16, "MiB of a request, at most.")
        max_items: int = option(1024, "Pairs or responses of a request, at most.")
        max_tokens: int | None = option(
            None, "Tokens of a response with its prompt, at most. Default: the model's positions, and no more than 8192."
        )
        max_queue: int = option(1024, "Requests that wait for their rewards, at most.")

    return TrlParser(ServeArguments, prog=prog)  # type: ignore[arg-type]


def main(args: Any) -> None:
    from trl_pafo.serving.serve import serve

    serve(args)
