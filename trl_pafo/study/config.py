"""The file of a study: which cells there are, and all that can be wrong with them, told before a model is loaded."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from trl import ModelConfig, TrlParser

from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.registry import check_source, data_identity
from trl_pafo.errors import ConfigError
from trl_pafo.evaluation.methods import METHODS, RIVALS, RunArguments
from trl_pafo.pipeline.run_checks import check_run_options
from trl_pafo.pipeline.run_options import run_config
from trl_pafo.storage.run_folder import digest_of
from trl_pafo.trainer.config import PAFOConfig

REFERENCE = "personalized_bt"
"""The best point of its path is what every method is compared with; each cell trains it."""
DEFAULT = "default"
"""Name of the setting of a study that names none."""

_KEYS = ("output_dir", "run", "methods", "data", "seeds", "population_seeds", "settings", "tuning")
_OURS = {
    "seed": "list the training seeds under `seeds`",
    "population_seed": "list them under `population_seeds`",
    "reference": f"a study compares with {REFERENCE}",
    "output_dir": "it belongs to the study, at the top of the file",
    "overwrite": "remove the folder of a cell to do it anew",
    "only": "a study does all stages of a cell; --cells does some of its cells",
    "push_to_hub": "a study pushes nothing",
}
"""Options of a run that a study sets itself, and what to do instead."""

_PATHS = ("data_path", "test_data_path")
_FROM_HUB = ("files", "personal_llm")
"""Sources whose data may be a Hub id, which is no file here."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a study: its place in the table, and the options of the run."""

    data: str
    setting: str
    population_seed: int
    seed: int
    options: Mapping[str, Any] = field(repr=False, default_factory=dict)
    tuning: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.data, self.setting, self.population_seed, self.seed

    @property
    def folder(self) -> str:
        """Its folder, relative to that of the study."""
        return f"cells/{self.data}/{self.setting}/population{self.population_seed}-seed{self.seed}"

    @property
    def title(self) -> str:
        setting = "" if self.setting == DEFAULT else f", {self.setting}"
        return f"{self.data}{setting}, population {self.population_seed}, seed {self.seed}"

    @property
    def methods(self) -> list[str]:
        return self.options["methods"]

    @cached_property
    def config(self) -> str:
        """The YAML with which `trl-pafo run --config FILE --output_dir OTHER` makes the same run."""
        return run_config(*parse(self.options))

    @cached_property
    def digest(self) -> str:
        """Digest of all that decides the cell but its methods: the options, and the content of the files of its data."""
        decides = yaml.safe_load(self.config)
        for name in ("methods", *_PATHS):  # data are known by their content
            decides.pop(name, None)
        tuned = {"tuning": dict(self.tuning)} if self.tuning else {}
        files = _files_of(self.options["source"], *map(self.options.get, _PATHS))
        return digest_of({"options": decides, "files": files, **tuned})


@dataclass(frozen=True, eq=False)
class Trial(Cell):
    """A run by which options are chosen: all methods with the same `values`, judged on validation users alone."""

    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        return f"tuning/{self.data}/{self.setting}/{name_of(self.values)}/population{self.population_seed}-seed{self.seed}"

    @property
    def title(self) -> str:
        return f"trial {name_of(self.values)}, {super().title}"


def name_of(values: Mapping[str, Any]) -> str:
    """Values of options as one name, of a folder too."""
    return re.sub(r"[^\w.,=+-]", "_", ",".join(f"{name}={value}" for name, value in values.items()), flags=re.ASCII)


@cache
def _files_of(source: str, data_path: str | None, test_data_path: str | None) -> dict[str, str]:
    """By content, read once for all cells."""
    data = RunArguments(source=source)
    data.data_path, data.test_data_path = data_path, test_data_path
    return data_identity(data)


def parse(options: Mapping[str, Any]) -> tuple[RunArguments, PAFOConfig, ModelConfig]:
    """The options of a run, as `trl-pafo run --config` reads them. What cannot be used is a [`ConfigError`]."""
    parser = TrlParser((RunArguments, PAFOConfig, ModelConfig))  # type: ignore[arg-type]
    parser.error = _refuse  # type: ignore[method-assign, assignment]
    # Else an adapter loses its reward head.
    parser.set_defaults_with_config(**{"lora_task_type": "SEQ_CLS", **options})
    unknown = sorted(set(options) - {action.dest for action in parser._actions})
    if unknown:
        raise ConfigError("; ".join(_unknown(name, [action.dest for action in parser._actions], "option") for name in unknown))
    try:
        return parser.parse_args_into_dataclasses(args=[], look_for_args_file=False)  # type: ignore[return-value]
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:  # a value of another kind, or one that transformers refuses on this machine
        raise ConfigError(" ".join(str(error).split())[:500]) from error


def _refuse(message: str) -> None:
    raise ValueError(message)


def _unknown(name: str, known: Sequence[str], what: str) -> str:
    near = get_close_matches(name, known, 1)
    return f"unknown {what} {name!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


@dataclass(frozen=True)
class StudyConfig:
    """
    A study: methods x data x seeds x settings.

    Args:
        output_dir (`str`):
            Folder of the study.
        cells (`tuple[Cell, ...]`):
            All its cells: by population and seed, then data, then settings.
        trials (`tuple[Trial, ...]`, *optional*):
            The runs by which options are chosen, for each data set, setting and method apart.
    """

    output_dir: str
    cells: tuple[Cell, ...]
    trials: tuple[Trial, ...] = ()

    @classmethod
    def read(cls, path: str | Path, output_dir: str | None = None) -> "StudyConfig":
        """Read a YAML file.

        Args:
            path (`str` or `Path`):
                The file.
            output_dir (`str`, *optional*):
                In place of the file's own.

        Raises:
            ConfigError: If the file, an option, a method or a source cannot be used: all that is wrong, of all cells at once.
        """
        try:
            given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
        if not isinstance(given, dict):
            raise ConfigError(f"{path} must be a mapping with methods, data and seeds; docs/study.md has an example.")
        return cls.make(given | ({"output_dir": output_dir} if output_dir else {}))

    @classmethod
    def make(cls, given: Mapping[str, Any]) -> "StudyConfig":
        """As [`read`], from what the file holds."""
        wrong: list[str] = []
        if not given.get("output_dir"):
            wrong.append("give `output_dir`, the folder of the study")
        shared = {name: value for name, value in given.items() if name not in _KEYS}
        twice = sorted(set(shared) & set(_mapping(given, "run", wrong)))
        wrong += [f"{name}: given at the top and under `run`; leave one out" for name in twice]
        shared |= _mapping(given, "run", wrong)
        methods = _methods(given, wrong)
        data = _named(given, "data", {}, wrong)
        if not data:
            wrong.append("give `data`: a name and options of the data for each set, such as `styles: {source: styles}`")
        settings = _named(given, "settings", {DEFAULT: {}}, wrong)
        populations, seeds = _seeds(given, "population_seeds", [0], wrong), _seeds(given, "seeds", [42], wrong)
        tuning = _tuning(given, populations, seeds, wrong)
        wrong += _refused(shared, "")
        for name, block in [*data.items(), *settings.items()]:
            wrong += _refused(block, f"{name}: ")
        blocks = {
            (name, setting): _options(shared, of_data, of_setting, methods, wrong)
            for (name, of_data), (setting, of_setting) in product(data.items(), settings.items())
        }
        for (name, setting), options in blocks.items() if methods else ():
            where = name if setting == DEFAULT else f"{name}, {setting}"
            wrong += [f"{where}: {error}" for error in _check(options)]
            for values in tuning.get("grid", ()):
                wrong += [f"{where}, {name_of(values)}: {error}" for error in _check(options | values, warn=False)]
        if wrong:
            raise ConfigError("The study cannot be done:\n" + "\n".join(f"- {line}" for line in dict.fromkeys(wrong)))
        cells = [
            Cell(name, setting, population, seed, options | {"population_seed": population, "seed": seed}, tuning)
            for seed, population, ((name, setting), options) in product(seeds, populations, blocks.items())
        ]
        of_trials = (tuning.get(key, ()) for key in ("seeds", "population_seeds"))
        trials = [
            Trial(name, setting, population, seed, options | values | {"population_seed": population, "seed": seed}, {}, values)
            for seed, population, ((name, setting), options), values in product(
                *of_trials, blocks.items(), tuning.get("grid", ())
            )
        ]
        return cls(str(given["output_dir"]), tuple(cells), tuple(trials))


def _options(
    shared: Mapping[str, Any],
    of_data: Mapping[str, Any],
    of_setting: Mapping[str, Any],
    methods: list[str],
    wrong: list[str],
) -> dict[str, Any]:
    """The options of a run: a setting says it against the data, and these against what is shared."""
    options = {"report_to": "none", **shared, **of_data, **of_setting}
    options["methods"] = _methods(of_setting, wrong) if "methods" in of_setting else methods
    return options | {"reference": REFERENCE}


def _check(options: Mapping[str, Any], warn: bool = True) -> Iterator[str]:
    """What is wrong with the options of a run, as far as it can be told without its data and its model."""
    try:
        run, args, model = parse(options)
        check_source(run)
        if warn:  # of options without effect, too
            check_run_options(run, args)
    except ConfigError as error:
        yield str(error)
        return
    for name in _PATHS:
        path = options.get(name)
        if path and run.source not in _FROM_HUB and not Path(path).exists():
            yield f"{name}: {path} does not exist"
    if model.model_name_or_path is None:
        yield "give model_name_or_path: a Hub id, a folder, minilm or smollm2"
    if args.use_cpu and not args.fp16 and "bf16" not in options:
        yield (
            "say bf16: true or false. On a CPU a run chooses by a measurement, and all cells must be trained in one number format "
            "(true where the CPU computes in bfloat16)"
        )
    if run.validation_share == 0:
        yield "validation_share: 0 holds no pairs out to choose the reference by; leave it out"


def _methods(given: Mapping[str, Any], wrong: list[str]) -> list[str]:
    """The methods with the reference among them."""
    known = (*METHODS, *RIVALS)
    methods = given.get("methods")
    if not isinstance(methods, list) or not methods:
        wrong.append(f"give `methods`, a list of {', '.join(known)}; all and rivals stand for many")
        return []
    several = {"all": METHODS, "rivals": RIVALS}
    methods = [method for name in methods for method in several.get(str(name), (name,))]
    wrong += [_unknown(str(m), known, "method") + f"; choose of {', '.join(known)}" for m in methods if m not in known]
    methods = [method for method in methods if method in known]
    return list(dict.fromkeys([*([] if REFERENCE in methods else [REFERENCE]), *methods]))


def _tuning(given: Mapping[str, Any], populations: list[int], seeds: list[int], wrong: list[str]) -> dict[str, Any]:
    """`grid`, the values of options that are tried, each with each; `population_seeds` and `seeds` of the trials. Empty without tuning."""
    block = _mapping(given, "tuning", wrong)
    lists = {name: values for name, values in block.items() if name not in ("population_seeds", "seeds")}
    if not block:
        return {}
    if not lists:
        wrong.append("`tuning` must name an option and the values to try, such as learning_rate: [2e-4, 4e-4]")
    wrong += _refused(lists, "tuning: ")
    of_data = sorted(set(lists) & {*DataArguments.__dataclass_fields__, "num_history", "methods"})
    wrong += [f"tuning: {name}: all methods of a cell see the same pairs; make it a setting" for name in of_data]
    for name, values in lists.items():
        # Trials of the same name would have one folder.
        if not isinstance(values, list) or not values or len({name_of({name: value}) for value in values}) < len(values):
            wrong.append(f"tuning: {name} must be a list of different values to try, got {values!r}")
            return {}
    return {
        "grid": [dict(zip(lists, values, strict=True)) for values in product(*lists.values())],
        "population_seeds": _seeds(block, "population_seeds", populations, wrong),
        "seeds": _seeds(block, "seeds", seeds[:1], wrong),
    }


def _mapping(given: Mapping[str, Any], key: str, wrong: list[str]) -> dict[str, Any]:
    found = given.get(key) or {}
    if not isinstance(found, dict):
        wrong.append(f"`{key}` must be a mapping, got {found!r}")
        return {}
    return found


def _named(given: Mapping[str, Any], key: str, default: dict[str, Any], wrong: list[str]) -> dict[str, dict[str, Any]]:
    """Blocks of options by name."""
    blocks = _mapping(given, key, wrong) or default
    for name, block in blocks.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,59}", name, re.ASCII):
            wrong.append(f"`{key}`: {name!r} becomes the name of a folder; use letters, digits, _, - and .")
        if block is not None and not isinstance(block, dict):
            wrong.append(f"`{key}`: {name} must be a mapping of options, got {block!r}")
    return {name: block if isinstance(block, dict) else {} for name, block in blocks.items()}


def _seeds(given: Mapping[str, Any], key: str, default: list[int], wrong: list[str]) -> list[int]:
    seeds = given.get(key, default)
    whole = isinstance(seeds, list) and all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        wrong.append(f"`{key}` must be a list of different whole numbers, such as [1, 2, 3], got {seeds!r}")
        return default
    return seeds


def _refused(block: Mapping[str, Any], where: str) -> list[str]:
    return [f"{where}{name}: {instead}" for name, instead in _OURS.items() if name in block]
