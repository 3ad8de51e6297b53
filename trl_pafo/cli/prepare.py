"""`trl-pafo prepare`: splits, groups and histories, as files that any RewardTrainer reads."""

from dataclasses import dataclass
from typing import Any

from trl_pafo.data.sources.arguments import option


def make_parser(prog: str | None = None) -> Any:
    from trl import TrlParser

    from trl_pafo.data.sources.arguments import DataArguments

    @dataclass
    class PrepareArguments(DataArguments):
        model_name_or_path: str | None = option(
            None, "Model whose tokenizer and chat template are used: Hub id, folder, minilm or smollm2."
        )
        model_revision: str = option("main", "Branch, tag or commit of a model on the Hub.")
        output_dir: str | None = option(None, "Folder to write to; must not exist.")
        num_history: int | None = option(None, "Past pairs in the prompt, newest first. Default: 3.")
        history_max_tokens: int | None = option(None, "Token budget of the history.")
        history_fields: list[str] | None = option(None, "Which parts of a past pair are shown: some of prompt, chosen, rejected.")

    return TrlParser(PrepareArguments, prog=prog)  # type: ignore[arg-type]


def main(args: Any) -> None:
    from pathlib import Path

    from trl_pafo.data.sources.registry import check_source
    from trl_pafo.errors import ConfigError
    from trl_pafo.models.base_models import fit_lengths, load_tokenizer
    from trl_pafo.pipeline.prepare import prepare
    from trl_pafo.storage.files import new_folder
    from trl_pafo.trainer.config import PAFOConfig

    if not args.output_dir or not args.model_name_or_path:
        raise ConfigError("Give --output_dir and --model_name_or_path (its tokenizer counts and renders the history).")
    check_source(args)
    out = Path(args.output_dir)
    known = {name: getattr(args, name) for name in ("num_history", "history_max_tokens", "history_fields")}
    config = PAFOConfig(str(out), use_cpu=True, bf16=False, **{k: v for k, v in known.items() if v is not None})
    with new_folder(out) as temporary:
        fit_lengths(config, args.model_name_or_path, args.model_revision)
        prepare(args, config, load_tokenizer(args.model_name_or_path, revision=args.model_revision), temporary)
    print(f"Prepared pairs: {out}")
    print(f"Any RewardTrainer takes them: trl reward --dataset_name {out} --chat_template_path {out / 'chat_template.jinja'} ...")
