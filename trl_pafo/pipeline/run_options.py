"""The options of a run's trainings: those of a training, and in which number format a CPU trains where nothing says it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trl_pafo.errors import RunFolderError
from trl_pafo.models.number_format import fast_bf16
from trl_pafo.report.record import RUN_CONFIG
from trl_pafo.trainer.config import PAFOConfig


@dataclass
class RunConfig(PAFOConfig):
    """[`PAFOConfig`] whose `bf16`, if not given, is on a CPU what [`~trl_pafo.models.number_format.fast_bf16`] measures.

    A run folder keeps its number format, whatever a later measurement finds: it decides the trainings.
    """

    def __post_init__(self) -> None:
        if self.bf16 is None and self.use_cpu and not self.fp16:
            kept = kept_bf16(Path(str(self.output_dir)))
            self.bf16 = fast_bf16() if kept is None else kept
        super().__post_init__()


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
