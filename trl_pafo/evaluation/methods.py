"""What a run trains and compares, beside PAFOConfig and TRL's ModelConfig: methods and teachers."""

import math
from dataclasses import dataclass, field
from itertools import chain

from trl_pafo.data.sources.arguments import DataArguments, option
from trl_pafo.errors import ConfigError

TEACHER_KINDS = ("auto", "adapter", "full")
METHODS = (
    *("bradley_terry", "personalized_bt", "worst_group_bt", "reweighted_bt", "distilled_ensemble"),
    *("pafo", "group_routed", "teacher_mixture"),
)
"""Those of `methods: [all]`, in this order."""

STUDENTS = ("pafo",)
"""Methods that distill teachers."""

OF_TEACHERS = ("group_routed", "teacher_mixture")
"""Methods that are all teachers, and no model of their own."""

TITLES = {
    "bradley_terry": "Bradley-Terry",
    "personalized_bt": "personalized BT",
    "worst_group_bt": "worst-group BT",
    "reweighted_bt": "reweighted BT",
    "group_dro": "group DRO",
    "grpo_robust": "GRPO-robust",
    "fairness_regularized": "fairness regularization",
    "fairness_coefficient": "fairness coefficient",
    "soft_tail": "soft tail",
    "mgda": "MGDA",
    "p_rlhf": "P-RLHF",
    "vpl": "VPL",
    "gpo": "GPO",
    "lore": "LoRe",
    "mrm": "MRM",
    "maxmin": "MaxMin-RLHF",
    "distilled_ensemble": "distilled ensemble",
    "pafo": "PAFO",
    "group_routed": "group-routed teachers",
    "teacher_mixture": "mixed teachers",
}
"""Names for people. The group-routed teachers route each test pair to the teacher of its group: it needs the label at inference. The
mixed teachers are weighed by the user's history."""

RIVALS = tuple(method for method in TITLES if method not in METHODS)
"""Methods of other papers, those of `rivals`."""


@dataclass
class RunArguments(DataArguments):
    """What a run trains and compares, beside the data; each option is described by its `help`."""

    methods: list[str] = field(
        default_factory=lambda: ["bradley_terry", "personalized_bt", "pafo", "group_routed"],
        metadata={
            "help": "Methods to train and compare: bradley_terry, personalized_bt, pafo, group_routed (the teachers, each for its own group); "
            "as controls teacher_mixture, worst_group_bt (the point of the path of personalized_bt that serves its worst group best), "
            "reweighted_bt (each group counts the same) and distilled_ensemble (five models of other seeds, distilled into one without "
            "groups); all of these: all. Of other papers (docs/baselines.md): " + ", ".join(RIVALS) + "; all of these: rivals."
        },
    )
    reference: str = option("personalized_bt", "Method that the others are compared with in the verdict.")
    reference_steps: list[float] = field(
        default_factory=lambda: [0.5, 1.0, 2.0, 4.0],
        metadata={
            "help": "Multiples of the student's optimizer steps for which personalized_bt is trained, 1 among them, each with a schedule of "
            "its own. The best point by group-balanced accuracy on held-out pairs is the method personalized_bt."
        },
    )
    num_hidden_layers: int | None = option(None, "Keep only the first layers of the model.")
    teacher_kind: str = option(
        "auto",
        "'auto': teachers are what the student is; 'adapter': teachers, the other methods and the student are LoRA adapters of one base; "
        "'full': teachers are full models, also beside a student that is an adapter.",
    )
    teacher_start: str = option("base", "'base': teachers start from the base model; 'warm': from the model of all groups.")
    teacher_min_steps: int = option(0, "Minimum number of optimizer steps per teacher, so that it learns a group with few pairs.")
    teacher_epochs: float | None = option(
        None,
        "Epochs of a teacher's training, which has no histories to learn to read. Default: num_train_epochs; max_steps is for teachers, too.",
    )
    teacher_folds: int = option(
        2,
        "Teachers a group, each trained without one part of the prompts. A pair is distilled from those that have not seen its prompt, their "
        "margins divided by the temperature at which they fit its group's labels best; new pairs get their mean. 1: one teacher, trained on "
        "all, whose margins are taken as they are.",
    )
    student_start: str = option(
        "teachers",
        "'teachers': the student starts from the mean of the weights of the run's teachers; 'base': from the base model, as it also does "
        "where `teachers` are given, or are full models beside a student that is an adapter.",
    )
    student_learning_rate: float | None = option(
        None,
        "Learning rate of the student. Default: half of learning_rate where it starts from its teachers, else learning_rate.",
    )
    distill_anyway: bool = option(
        False,
        "Distill whatever the predicted front says. Without it, the reference is the result where held-out pairs show that nothing is to be "
        "had, or a group has too few held-out users to judge.",
    )
    trainings_at_once: int | None = option(
        None,
        "Trainings that do not wait for each other, side by side, each in a process with its share of the threads. Default: 1; quickstart: 2 "
        "on a CPU with two threads.",
    )
    only: list[str] | None = option(
        None, "Do these stages of a run alone, one after the other, beside other commands that do others; first of all: prepare."
    )
    num_resamples: int = option(1000, "Bootstrap resamples over users.")
    overwrite: bool = option(False, "Replace results in output_dir that were made with other options.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.methods == ["all"]:
            self.methods = list(METHODS)
        self.methods = list(dict.fromkeys(chain(*(RIVALS if name == "rivals" else (name,) for name in self.methods))))
        known = (*METHODS, *RIVALS)
        if not self.methods or not set(self.methods) <= set(known):
            raise ConfigError(f"`methods` must be some of {', '.join(known)}, rivals, or all, got {self.methods}.")
        if self.reference not in self.methods:
            raise ConfigError(f"`reference` must be one of the methods ({', '.join(self.methods)}), got {self.reference!r}.")
        choices = {"teacher_kind": TEACHER_KINDS, "teacher_start": ("base", "warm"), "student_start": ("teachers", "base")}
        for name, (*first, last) in choices.items():
            if (given := getattr(self, name)) not in (*first, last):
                raise ConfigError(f"`{name}` must be {', '.join(first)} or {last}, got {given!r}.")
        if "worst_group_bt" in self.methods and "personalized_bt" not in self.methods:
            raise ConfigError("worst_group_bt is a point of the path of personalized_bt: add that to `methods`.")
        steps = self.reference_steps = [float(multiple) for multiple in self.reference_steps]
        if 1 not in steps or len(set(steps)) < len(steps) or not all(0 < multiple < math.inf for multiple in steps):
            raise ConfigError(
                f"`reference_steps` must be different multiples of the student's steps, above 0, with 1 among them; got {steps}."
            )
        if self.teacher_start == "warm" and "personalized_bt" not in self.methods:
            raise ConfigError("`teacher_start=warm` starts from personalized_bt: add it to `methods`.")
        for name in ("student_learning_rate", "teacher_epochs"):
            if (given := getattr(self, name)) is not None and not 0 < given < math.inf:
                raise ConfigError(f"`{name}` must be above 0, got {given}.")
        for name in ("teacher_folds", "trainings_at_once", "num_resamples"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ConfigError(f"`{name}` must be at least 1, got {number}.")
        if "teacher_mixture" in self.methods and not self.predicts_front:
            raise ConfigError(
                "teacher_mixture is fitted on held-out pairs, beside personalized_bt: add that to `methods`, and hold pairs out "
                "(--validation_share)."
            )

    @property
    def needs_teachers(self) -> bool:
        """Whether a method has teachers."""
        return bool({"pafo", *OF_TEACHERS} & set(self.methods))

    @property
    def predicts_front(self) -> bool:
        """Whether held-out pairs tell what can be had from teachers."""
        wanted = {"pafo", "teacher_mixture"} & set(self.methods)
        return bool(wanted) and self.validation_share > 0 and "personalized_bt" in self.methods
