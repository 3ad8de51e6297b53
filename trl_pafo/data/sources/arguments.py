"""What is asked of a source of preference pairs."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trl_pafo.errors import ConfigError

NUM_USERS = 200
"""Users of each split where users are made and no number is given."""

WAYS = {
    "users_and_prompts": "new people on new prompts",
    "users": "new people on known prompts",
    "pairs": "new pairs of known people",
}
"""What can be held out, in words."""

_LIMITS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("validation_users",), lambda value: value >= 2, "at least 2"),
    (("train_users", "test_users", "pairs_per_user", "max_words", "min_pairs"), lambda value: value >= 1, "at least 1"),
    (("hold_out",), WAYS.__contains__, f"one of {', '.join(WAYS)}"),
    (("num_clusters",), lambda value: value >= 2, "at least 2"),
    (("context_pairs",), lambda value: value >= 0, "at least 0"),
    (("minority_ratio", "test_prompt_share"), lambda value: 0 < value < 1, "above 0 and below 1"),
    (("validation_share",), lambda value: 0 <= value < 1, "at least 0 and below 1"),
    (("taste_mix",), lambda value: 0 <= value <= 1, "in [0, 1]"),
    (("label_noise",), lambda value: 0 <= value < 0.5, "in [0, 0.5)"),
)


def option(default: Any, text: str) -> Any:
    # A "%" would be taken as a format by argparse.
    return field(default=default, metadata={"help": text.replace("%", "%%")})


@dataclass
class DataArguments:
    """Where the preference pairs come from; each option is described by its `help`."""

    source: str = option(
        "",
        "styles (the shipped corpus), dsp, swissmetro, personal_llm, prism, polis or files. Default: files with data_path, else "
        "styles.",
    )
    data_path: str | None = field(
        default=None,
        metadata={
            "help": "File, folder or Hub id of the data; styles and swissmetro need none.",
            "aliases": ["--dataset_name"],
        },
    )
    test_data_path: str | None = option(None, "Test pairs for `files`; without it, some are held out.")
    columns: list[str] | None = option(
        None,
        "What columns of `files` are, where their names do not say it: user=worker prompt=question response_a=left ...; time= for none. A "
        "mapping in YAML and Python.",
    )
    preferred_values: list[str] | None = option(
        None,
        "Values of the column `preferred` of `files`, where they do not say it: a=first b=second tie=same. A mapping in YAML and Python.",
    )
    describe: list[str] | None = option(
        None, "Columns of `files` about its users, such as age country: they are counted by group."
    )
    majority: list[str] | None = option(
        None, "Types (styles, domains) that the users of the majority hold: thorough; for dsp, academy."
    )
    minority: list[str] | None = option(
        None,
        "Types that the users of the minority hold (playful; for dsp, entertainment); values of --group_by that make the minority of prism.",
    )
    minority_ratio: float = option(
        0.1, "Share of users in the minority, above 0 and below 1, for the sources that make their users."
    )
    train_users: int | None = option(
        None, f"Number of users in training. Default: {NUM_USERS} where users are made, all where they are real."
    )
    test_users: int | None = option(None, "Number of users in test, likewise.")
    pairs_per_user: int = option(4, "Pairs that each user judges, not counting context_pairs.")
    context_pairs: int | None = option(
        None, "Earlier pairs of each user, which test users have as history alone. Default: num_history; at least 1 for files."
    )
    test_prompt_share: float = option(0.25, "Share of the prompts that is kept for test users, where prompts are held out.")
    validation_users: int = option(
        100,
        "Most validation users, as many of each group as there are: made where users are made by types, else people whom training leaves "
        "over or gives away. Not for personal_llm, files.",
    )
    validation_share: float = option(
        0.15,
        "Share of the training prompts held out to choose lengths of trainings by and to predict what can be had; 0: none. Where users are "
        "made by types, new ones judge these prompts; of real people, people are held out in place of prompts; for personal_llm "
        "and files, the training users' pairs on these prompts, unless a folder has a split validation that can be used.",
    )
    taste_mix: float = option(0.0, "Share of pairs in which a user prefers a second type of its own.")
    label_noise: float = option(0.0, "Share of labels that are flipped.")
    max_words: int | None = option(None, "Cut the answers of `dsp` at a sentence end within this many words.")
    minority_threshold: float | None = option(
        None, "Users with a support rate below it are the minority; for data without groups."
    )
    minority_quantile: float | None = option(None, "Or: this share of users, with the lowest support rates, are the minority.")
    group_by: str | None = option(None, "Survey field that makes the groups of `prism`.")
    topic: str | None = option(None, "What a conversation of `polis` is about, the prompt. Default: its folder's name.")
    num_clusters: int = option(2, "Clusters of votes that make the groups of `polis`.")
    hold_out: str | None = option(
        None,
        "What test pairs of files and polis are: users_and_prompts (new people on new prompts; of polis, statements), users (new people on "
        "known prompts) or pairs (new pairs of known people; files). Default: what the data allow; of polis, users.",
    )
    min_pairs: int = option(2, "Users of `files` with fewer pairs are left out; 1: served without history where they have none.")
    infer_groups: str | None = option(
        None,
        "Find the groups in the training pairs alone, seen through frozen features of this model: a Hub id, a folder, minilm or smollm2. "
        "Groups of the data are then not looked at in training.",
    )
    population_seed: int = option(0, "Seed of users, pairs and splits.")

    def __post_init__(self) -> None:
        self.source = self.source or ("files" if self.data_path or self.test_data_path else "styles")
        for name in ("columns", "preferred_values"):
            given: Any = getattr(self, name)
            if isinstance(given, Mapping):
                values = (
                    (key, value) for key, own in given.items() for value in (own if isinstance(own, list | tuple) else [own])
                )
                setattr(self, name, [f"{key}={'' if value is None else value}" for key, value in values])
            elif bad := [entry for entry in given or () if "=" not in entry]:
                raise ConfigError(f"--{name} must be of the form NAME=VALUE, got {bad[0]!r}.")
        for names, fits, limits in _LIMITS:
            for name in names:
                value = getattr(self, name)
                if value is not None and not fits(value):
                    raise ConfigError(f"`{name}` must be {limits}, got {value}.")

    @property
    def num_pairs(self) -> int:
        """Pairs that a user judges where users are made, those that only serve as history included."""
        return self.pairs_per_user + (1 if self.context_pairs is None else self.context_pairs)

    def table_options(self) -> dict[str, Any]:
        """What else is read of a table: options of [`~trl_pafo.data.sources.tables.read_table`]."""
        return {}

    def named(self, option: str) -> dict[str, list[str]]:
        """`columns` or `preferred_values`: the values under each name."""
        found: dict[str, list[str]] = {}
        for entry in getattr(self, option) or ():
            name, _, value = entry.partition("=")
            found.setdefault(name.strip(), []).append(value.strip())
        return found

    def number_of_users(self, split: str) -> int:
        """Users of a split where users are made."""
        return getattr(self, f"{split}_users") or NUM_USERS

    def data_inputs(self) -> dict[str, Any]:
        """The options that decide the data, as inputs of the prepare stage."""
        return {f: v for f, v in asdict(self).items() if f in DataArguments.__dataclass_fields__}


def data_name(inputs: Mapping[str, Any]) -> str:
    """What the data are, for the head of a table: the source and, where there are any, its files."""
    paths = [str(inputs[name]) for name in ("data_path", "test_data_path") if inputs.get(name)]
    what = "the shipped corpus" if inputs["source"] == "styles" else " and ".join(paths)
    return f"{inputs['source']} ({what})" if what else str(inputs["source"])
