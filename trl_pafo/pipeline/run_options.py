"""The options of a run: in which number format a CPU trains where nothing says it, the file of the options, how long it trains."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from trl import ModelConfig

from trl_pafo.errors import RunFolderError
from trl_pafo.evaluation.methods import RunArguments
from trl_pafo.models.number_format import fast_bf16
from trl_pafo.models.ranks import num_processes, on_first
from trl_pafo.report.record import RUN_CONFIG
from trl_pafo.storage.canonical import canonical, default_of
from trl_pafo.trainer.cache_keys import FREE
from trl_pafo.trainer.config import PAFOConfig

_NOT_IN_FILE = FREE - {"teachers"} | {"overwrite", "only", "trainings_at_once"}


@dataclass
class RunConfig(PAFOConfig):
    """[`PAFOConfig`] whose `bf16`, if not given, is on a CPU what [`~trl_pafo.models.number_format.fast_bf16`] measures.

    It is measured where it is asked for, not before what else is given has been checked. A run folder keeps its number format, whatever a
    later measurement finds: it decides the trainings.
    """

    def __post_init__(self) -> None:
        self._given = dict(vars(self)) if self.bf16 is None and self.use_cpu and not self.fp16 else None
        super().__post_init__()

    def with_number_format(self) -> "RunConfig":
        """The same options with `bf16` as given, kept or measured; of several processes, one measures for all."""
        return self if self._given is None else RunConfig(**self._given | {"bf16": on_first(self._kept_or_fast_bf16)})

    def _kept_or_fast_bf16(self) -> bool:
        kept = kept_bf16(Path(str(self.output_dir)))
        return fast_bf16() if kept is None else kept


def kept_bf16(folder: Path) -> bool | None:
    """The number format of the run in a folder, `None` if there is no run."""
    path = folder / RUN_CONFIG
    try:
        config: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except yaml.YAMLError as error:
        raise RunFolderError(f"{path} is no YAML. Remove it, and pass --bf16 true or false, as the run was trained.") from error
    kept = config.get("bf16") if isinstance(config, dict) else None
    return kept if isinstance(kept, bool) else None


def run_config(run: RunArguments, args: PAFOConfig, model: ModelConfig) -> str:
    """The YAML with which `trl-pafo run --config FILE --output_dir OTHER` makes the same run.

    It has each option that is not at its default, but for those that decide no result (where the output is, logging, checkpoints, Hub).
    Of a run on several processes it says how many, as a batch is that of each.
    """
    config: dict[str, Any] = {}
    for options in (run, args, model):
        for field in fields(options):
            value = canonical(getattr(options, field.name))
            if field.name not in _NOT_IN_FILE and value != default_of(field):
                config[field.name] = value
    # `args` know one where the first works alone.
    launched = f"# On {num_processes()} processes.\n" if num_processes() > 1 else ""
    return launched + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def optimizer_steps(num_pairs: int, args: PAFOConfig) -> int:
    """Optimizer steps of a training on so many pairs, as the Trainer counts them."""
    if args.max_steps > 0:
        return args.max_steps
    batches = num_pairs / args.pairs_at_once
    batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    return math.ceil(args.num_train_epochs * max(1, math.ceil(batches / args.gradient_accumulation_steps)))
