"""What an audit is asked to do, beside the data."""

from dataclasses import dataclass, field
from typing import Any

from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.errors import ConfigError


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class AuditArguments(DataArguments):
    """
    What an audit looks at, beside the data.

    Parameters:
        model (`str`, *optional*):
            Reward model or adapter, a folder or Hub id, whose accuracy on test pairs is set against support; without it the shared
            probe's is.
        tokenizer (`str`, *optional*):
            Whose tokens are counted. Defaults to `model`, or else to `embedding_model`.
        embedding_model (`str`, *optional*, defaults to `"minilm"`):
            Model whose hidden states are the features of the probes: Hub id, folder, `minilm` or `smollm2`.
        output_dir (`str`, *optional*):
            Folder for audit.json, audit.md and the pictures; new, empty, or that of an earlier audit, which is replaced.
        headroom (`bool`, *optional*, defaults to `True`):
            Fit probes. Without them, nothing is embedded.
        headroom_pairs (`int`, *optional*, defaults to `2000`):
            Probes take so many pairs at most: all of some users, the groups in their proportions.
        folds (`int`, *optional*, defaults to `4`):
            Parts of the users and of the prompts in cross-validation.
        repeats (`int`, *optional*, defaults to `3`):
            How often the parts are drawn anew.
        min_gain (`float`, *optional*, defaults to `0.02`):
            Smallest gain of accuracy that is worth a teacher, in (0, 1).
        num_history (`int`, *optional*):
            Past pairs that are shown. Defaults to what the model remembers, or 3.
        history_max_tokens, history_fields (`int`, `list[str]`, *optional*):
            As for `trl-pafo prepare`; the probes always see chosen and rejected.
        max_length (`int`, *optional*):
            Most tokens of an input. Defaults to TRL's default or the positions of the tokenizer's model, whichever is less.
        batch_size (`int`, *optional*, defaults to `32`):
            Texts or pairs in a forward pass.
        num_resamples (`int`, *optional*, defaults to `1000`):
            Resamples over users.
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything that the audit draws.
    """

    model: str | None = _option(None, "Reward model (folder or Hub id) to judge; without it the shared probe is.")
    tokenizer: str | None = _option(None, "Whose tokens are counted. Default: the model, or else embedding_model.")
    embedding_model: str = _option("minilm", "Frozen features of the probes: Hub id, folder, minilm or smollm2.")
    output_dir: str | None = _option(None, "Folder for audit.json, audit.md and pictures; may hold an earlier audit, else new.")
    headroom: bool = _option(True, "Fit probes. Without them, nothing is embedded.")
    headroom_pairs: int = _option(2000, "Pairs that the probes take at most.")
    folds: int = _option(4, "Parts of the users and of the prompts in cross-validation.")
    repeats: int = _option(3, "How often the parts are drawn anew.")
    min_gain: float = _option(0.02, "Smallest gain of accuracy that is worth a teacher.")
    num_history: int | None = _option(None, "Past pairs that are shown. Default: what the model remembers, or 3.")
    history_max_tokens: int | None = _option(None, "Token budget of the history.")
    history_fields: list[str] | None = _option(None, "What of a past pair is shown: some of prompt, chosen, rejected.")
    max_length: int | None = _option(None, "Most tokens of an input. Default: TRL's, or the model's positions.")
    batch_size: int = _option(32, "Texts or pairs in a forward pass.")
    num_resamples: int = _option(1000, "Resamples over users.")
    seed: int = _option(0, "Seed of everything that the audit draws.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_share != DataArguments.validation_share:
            raise ConfigError("--validation_share: no effect on an audit, which holds nothing out for a training. Leave it out.")
        of_probes = ["headroom_pairs", "folds", "repeats", "min_gain"]
        if self.model is not None or self.tokenizer is not None:
            of_probes.append("embedding_model")  # whose tokens are counted else
        if self.model is None:
            of_probes.append("batch_size")
        unused = [f"--{name}" for name in of_probes if getattr(self, name) != self.__dataclass_fields__[name].default]
        if unused and not self.headroom:
            raise ConfigError(f"{', '.join(unused)}: no effect without probes. Leave it out, or leave --headroom on.")
        least = {"headroom_pairs": 50, "folds": 2, "repeats": 1, "batch_size": 1, "num_resamples": 100, "seed": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"`{name}` must be at least {bound}, got {getattr(self, name)}.")
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"`max_length` must be at least 1, got {self.max_length}.")
        if not 0 < self.min_gain < 1:
            raise ConfigError(f"`min_gain` is a gain of accuracy, above 0 and below 1; got {self.min_gain}.")
