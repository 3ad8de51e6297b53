"""What a run is asked to do, beside PAFOConfig and TRL's ModelConfig: data, methods, teachers."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trl_pafo.errors import ConfigError

TEACHER_KINDS = ("auto", "adapter", "full")
METHODS = ("bradley_terry", "personalized_bt", "pafo", "pafo_own_group", "oracle")

TITLES = {
    "bradley_terry": "Bradley-Terry",
    "personalized_bt": "personalised BT",
    "pafo": "PAFO",
    "pafo_own_group": "PAFO, own group only",
    "oracle": "oracle (knows the group)",
}
"""Names for people. The oracle routes each test pair to the teacher of its group: it needs the label at inference."""


def _option(default: Any, text: str) -> Any:
    # A "%" would be taken as a format by argparse.
    return field(default=default, metadata={"help": text.replace("%", "%%")})


@dataclass
class DataArguments:
    """
    Where the preference pairs come from.

    Parameters:
        source (`str`, *optional*):
            `styles` (the shipped corpus), `dsp`, `swissmetro`, `personal_llm`, `prism`, `ukp_convarg` or `files`. Defaults to
            `files` if there is a `data_path`, else to `styles`.
        data_path (`str`, *optional*):
            File, folder or Hub id; `styles` and `swissmetro` need none.
        test_data_path (`str`, *optional*):
            Test pairs for `files`; without it, users and prompts are set apart.
        majority (`list[str]`, *optional*):
            Types that the majority's users hold (`styles`: thorough, `dsp`: academy).
        minority (`list[str]`, *optional*):
            Types that the minority's users hold (`styles`: playful, `dsp`: entertainment).
        minority_ratio (`float`, *optional*, defaults to `0.1`):
            Share of users in the minority, for the sources that make their users.
        train_users, test_users (`int`, *optional*):
            Number of users. `None` takes the source's default.
        pairs_per_user (`int`, *optional*, defaults to `4`):
            Pairs a user judges, beside `context_pairs`.
        context_pairs (`int`, *optional*):
            Earlier pairs of each user, which test users have as history alone. Defaults to `num_history`.
        test_prompt_share (`float`, *optional*, defaults to `0.25`):
            Share of the prompts that are kept for test users.
        validation_share (`float`, *optional*, defaults to `0.15`):
            Share of the training prompts whose pairs are held out of all training, to choose teachers and epochs by; in [0, 1).
        taste_mix (`float`, *optional*, defaults to `0.0`):
            Share of pairs in which a user prefers a second type of its own.
        label_noise (`float`, *optional*, defaults to `0.0`):
            Share of labels that are turned round.
        max_words (`int`, *optional*):
            Cut the answers of `dsp` at a sentence end within this many words.
        minority_threshold (`float`, *optional*):
            Users with a support rate below it are the minority; for data without groups.
        minority_quantile (`float`, *optional*):
            Or: this share of users, those with the lowest support rates, are the minority.
        group_by (`str`, *optional*):
            Survey field that makes the groups of `prism`.
        population_seed (`int`, *optional*, defaults to `0`):
            Seed of users, pairs and splits.
    """

    source: str = _option(
        "",
        "styles (shipped), dsp, swissmetro, personal_llm, prism, ukp_convarg or files. Default: files with data_path, else styles.",
    )
    data_path: str | None = _option(None, "File, folder or Hub id of the data; `styles` and `swissmetro` need none.")
    test_data_path: str | None = _option(None, "Test pairs for `files`; without it, users and prompts are set apart.")
    majority: list[str] | None = _option(None, "Types (styles, domains) that the users of the majority hold.")
    minority: list[str] | None = _option(None, "Types (styles, domains) that the users of the minority hold.")
    minority_ratio: float = _option(0.1, "Share of users in the minority, above 0 and below 1.")
    train_users: int | None = _option(None, "Number of users in training.")
    test_users: int | None = _option(None, "Number of users in test.")
    pairs_per_user: int = _option(4, "Pairs a user judges, beside context_pairs.")
    context_pairs: int | None = _option(None, "Earlier pairs of each user, for the history. Default: num_history.")
    test_prompt_share: float = _option(0.25, "Share of the prompts kept for test users.")
    validation_share: float = _option(0.15, "Share of the training prompts held out to choose teachers by; 0: none.")
    taste_mix: float = _option(0.0, "Share of pairs in which a user prefers a second type of its own.")
    label_noise: float = _option(0.0, "Share of labels that are turned round.")
    max_words: int | None = _option(None, "Cut the answers of `dsp` at a sentence end within this many words.")
    minority_threshold: float | None = _option(None, "Users with a support rate below it are the minority.")
    minority_quantile: float | None = _option(None, "This share of users, with the lowest support rates, are the minority.")
    group_by: str | None = _option(None, "Survey field that makes the groups of `prism`.")
    population_seed: int = _option(0, "Seed of users, pairs and splits.")

    def __post_init__(self) -> None:
        self.source = self.source or ("files" if self.data_path or self.test_data_path else "styles")
        if not 0 <= self.validation_share < 1:
            raise ConfigError(f"`validation_share` must be at least 0 and below 1, got {self.validation_share}.")

    def data_inputs(self) -> dict[str, Any]:
        """The options that decide the data, as inputs of the prepare stage."""
        return {f: v for f, v in asdict(self).items() if f in DataArguments.__dataclass_fields__}


def data_name(inputs: Mapping[str, Any]) -> str:
    """What the data are, for the head of a table: the source and, where there are any, its files."""
    paths = [str(inputs[name]) for name in ("data_path", "test_data_path") if inputs.get(name)]
    what = "the shipped corpus" if inputs["source"] == "styles" else " and ".join(paths)
    return f"{inputs['source']} ({what})" if what else str(inputs["source"])


@dataclass
class RunArguments(DataArguments):
    """
    What a run trains and compares, beside the data.

    Parameters:
        methods (`list[str]`, *optional*):
            Which of bradley_terry, personalized_bt, pafo, pafo_own_group (no counterfactual rows) and oracle (the teachers, each
            for its own group) to train and evaluate. All but pafo_own_group by default.
        reference (`str`, *optional*, defaults to `"personalized_bt"`):
            Method that the others are compared with in the verdict.
        num_hidden_layers (`int`, *optional*):
            Keep only the first layers of the model.
        teacher_kind (`str`, *optional*, defaults to `"auto"`):
            `"auto"`: teachers are what the student is, adapters with `use_peft`, else full models; `"adapter"`: teachers, the other
            methods and the student are LoRA adapters of one base; `"full"`: teachers are full models, also beside a student that
            is an adapter.
        teacher_start (`str`, *optional*, defaults to `"base"`):
            `"base"`: teachers start from the base model; `"warm"`: from the personalised Bradley-Terry model of all groups.
        teacher_min_steps (`int`, *optional*, defaults to `0`):
            At least this many optimiser steps a teacher, so that a group with few pairs is learnt.
        teacher_min_gain (`float`, *optional*, defaults to `1.64`):
            Teachers are distilled if one at least is better than the personalised Bradley-Terry model: more accurate on held-out
            pairs of its group, by at least this many standard errors (1.64: a one-sided test at 5 %). If none is, or a group has too
            few held-out users to judge its teacher, that model is the result. `-inf` distils in any case, as does a
            `validation_share` of 0.
        num_resamples (`int`, *optional*, defaults to `1000`):
            Bootstrap resamples over users.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace results in `output_dir` that were made with other options.
    """

    methods: list[str] = field(
        default_factory=lambda: ["bradley_terry", "personalized_bt", "pafo", "oracle"],
        metadata={"help": f"Methods to train and compare: {', '.join(METHODS)}."},
    )
    reference: str = _option("personalized_bt", "Method that the others are compared with in the verdict.")
    num_hidden_layers: int | None = _option(None, "Keep only the first layers of the model.")
    teacher_kind: str = _option("auto", "'adapter': all are LoRA adapters of one base; 'full': teachers are full models.")
    teacher_start: str = _option("base", "'base': teachers start from the base model; 'warm': from the model of all groups.")
    teacher_min_steps: int = _option(0, "At least this many optimiser steps a teacher.")
    teacher_min_gain: float = _option(
        1.64, "Standard errors by which a teacher must beat the shared model, or nothing is distilled."
    )
    num_resamples: int = _option(1000, "Bootstrap resamples over users.")
    overwrite: bool = _option(False, "Replace results in output_dir that were made with other options.")

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(set(self.methods) - set(METHODS))
        if unknown or not self.methods:
            raise ConfigError(f"`methods` must be some of {', '.join(METHODS)}, got {self.methods}.")
        if self.reference not in self.methods:
            raise ConfigError(f"`reference` must be one of the methods ({', '.join(self.methods)}), got {self.reference!r}.")
        if self.teacher_kind not in TEACHER_KINDS:
            raise ConfigError(
                f"`teacher_kind` must be {', '.join(TEACHER_KINDS[:-1])} or {TEACHER_KINDS[-1]}, got {self.teacher_kind!r}."
            )
        if self.teacher_start not in ("base", "warm"):
            raise ConfigError(f"`teacher_start` must be base or warm, got {self.teacher_start!r}.")
        if self.teacher_start == "warm" and "personalized_bt" not in self.methods:
            raise ConfigError("`teacher_start=warm` starts from personalized_bt: add it to `methods`.")
        if self.num_resamples < 1:
            raise ConfigError(f"`num_resamples` must be at least 1, got {self.num_resamples}.")
        if math.isnan(self.teacher_min_gain):
            raise ConfigError("`teacher_min_gain` is a number of standard errors, got nan.")

    @property
    def needs_teachers(self) -> bool:
        """Whether a method has teachers."""
        return bool({"pafo", "pafo_own_group", "oracle"} & set(self.methods))

    @property
    def judges_teachers(self) -> bool:
        """Whether teachers must beat the shared model on held-out pairs."""
        return self.validation_share > 0 and self.teacher_min_gain > -math.inf and "personalized_bt" in self.methods
