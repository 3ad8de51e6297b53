"""Which reward models are looked at, as flags; it loads nothing."""

from dataclasses import dataclass, field
from typing import Any

from trl_pafo.data.sources.arguments import option


@dataclass
class RewardModelArguments:
    """Reward models, of anybody's training; each option is described by its `help`."""

    model_name_or_path: list[str] | None = field(
        default=None, metadata={"help": "Reward models or adapters: folders or Hub ids, one or several."}
    )
    score_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns with rewards: of each model that of the first response (chosen, or A) and that of the second; one where a "
            "row holds one response."
        },
    )
    reward_function: list[str] | None = field(
        default=None, metadata={"help": "Functions package.module:name, called f(prompts, completions, **columns) as in TRL."}
    )
    batch_size: int = option(32, "Pairs in a forward pass.")
    bf16: bool = option(False, "Compute in bfloat16 mixed precision.")

    def sources(self) -> list[Any]:
        """The models, as [`~trl_pafo.evaluation.reward_sources.name_sources`] takes them; functions are imported.

        Raises:
            ConfigError: If a function cannot be imported.
        """
        from trl_pafo.evaluation.reward_sources import load_function

        named: Any = self.model_name_or_path or []  # a text, where YAML has one
        functions: Any = self.reward_function or []
        return [
            *([named] if isinstance(named, str) else named),
            *([tuple(self.score_columns)] if self.score_columns else []),
            *map(load_function, [functions] if isinstance(functions, str) else functions),
        ]
