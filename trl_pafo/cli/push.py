"""`trl-pafo push FOLDER`: a model of a run, or a saved model, to the Hub: weights, tokenizer and card."""

from dataclasses import dataclass
from typing import Any

from trl_pafo.data.sources.arguments import option


def make_parser(prog: str | None = None) -> Any:
    from trl import TrlParser

    @dataclass
    class PushArguments:
        hub_model_id: str | None = option(None, "NAME or NAMESPACE/NAME on the Hub.")
        method: str | None = option(None, "Which model of a run. Default: pafo.")
        private: bool = option(False, "Make a new repository private. Default: what its owner's settings say.")
        hub_revision: str | None = option(None, "Branch to push to. Default: main.")
        base_model: str | None = option(None, "Hub id of an adapter's base model, where it was trained from a folder.")

    parser = TrlParser(PushArguments, prog=prog)  # type: ignore[arg-type]
    parser.add_argument("folder", metavar="FOLDER", help="Folder of a run, or of a saved model.")
    return parser


def main(args: Any, positional: Any) -> None:
    from trl_pafo.errors import ConfigError
    from trl_pafo.pipeline.publish import push_run

    if not args.hub_model_id:
        raise ConfigError("Give --hub_model_id: NAME or NAMESPACE/NAME.")
    commit = push_run(
        positional.folder,
        args.hub_model_id,
        method=args.method,
        private=args.private or None,
        revision=args.hub_revision,
        base_model=args.base_model,
    )
    print(f"Pushed: {commit.repo_url}")
