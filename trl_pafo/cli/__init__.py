"""The command `trl-pafo`: one file a command, no logic of its own.

Each command module has `make_parser()` and `main(...)`; it is imported only when its command is asked for, and help of any
command loads neither torch nor transformers, so that it comes at once.
"""

import difflib
import os
import sys
from importlib import import_module
from typing import Any, NoReturn

from trl_pafo.errors import TrlPafoError

COMMANDS = {
    "quickstart": "all of PAFO on the shipped corpus, in minutes on a laptop",
    "audit": "before training: users, groups, noise and bias of a dataset, and whether a teacher per group would gain anything",
    "prepare": "groups, histories and splits: write training and test pairs that any RewardTrainer reads",
    "reward": "train a reward model: `trl reward` with PAFO's flags",
    "run": "all stages: prepare, baselines, teachers, margins, the unified model, evaluation",
    "study": "methods x data x seeds x settings, each cell a run, in one table",
    "evaluate": "group and user fairness of reward models of any training on test pairs, in one table",
    "report": "the results of a run as one HTML file with pictures",
    "score": "raw rewards for a JSONL file of pairs or responses (with histories)",
    "serve": "the same rewards over HTTP (needs the extra `serve`)",
    "push": "upload a saved model, or a run's, to the Hub: weights, tokenizer and card, nothing else",
    "portfolio": "PALM: a few policies for every preference weight, with a certificate",
}

HELP = ("-h", "--help", "help")
TRAINING = ("quickstart", "reward", "run")  # Commands that also take the flags of a training.
_OF_SEVERAL = (*TRAINING, "audit", "evaluate", "score")  # Commands that the processes of a launcher do together.


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _main(argv)
        finally:
            show()
    except OSError as error:  # standard output is a file on a full disk
        return _failed(1, f"trl-pafo: {error}")


def show(text: str = "") -> None:
    """Print what was asked for, and all before it. That a reader wants no more of it, such as `head -1`, is no error."""
    try:
        print(text, end="", flush=True)
    except OSError as error:
        # Else Python writes what is left when it ends, and tells of that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def commands_page(prog: str, commands: dict[str, str], more: str = "") -> str:
    """The help of a command that has others behind it."""
    lines = "".join(f"  {name:<12}{text}\n" for name, text in commands.items())
    usage = f"usage: {prog} COMMAND [--config FILE.yaml] [flags]\n\ncommands:\n"
    return f"{usage}{lines}\n`{prog} COMMAND --help` lists the flags of a command{more}.\n"


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in HELP:
        show(commands_page("trl-pafo", COMMANDS, ", `--help-all` also those of TRL and transformers"))
        return 0
    if argv[0] in ("-V", "--version"):
        from trl_pafo.storage.versions import __version__

        show(f"trl-pafo {__version__}\n")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        return _failed(2, f"trl-pafo: unknown command {name!r}; choose one of {', '.join(COMMANDS)}.")
    if name not in _OF_SEVERAL and argv[:2] != ["portfolio", "train"] and _is_one_of_several():
        return _failed(2, f"trl-pafo {name} works in one process. Start it without a launcher: trl-pafo {name} ...")
    import yaml

    from trl_pafo.cli.quiet import quiet
    from trl_pafo.storage.files import room_needed
    from trl_pafo.storage.versions import check_versions

    asks_for_help = bool({"-h", "--help"} & set(rest))
    if not asks_for_help:
        quiet()  # which loads them
    command = import_module(f"trl_pafo.cli.{name}")
    # Loading what a training needs takes seconds, and its flags are hundreds: they are shown to those who ask for them.
    short = {"short": True} if name in (*TRAINING, "portfolio") and asks_for_help else {}
    rest = ["--help" if flag == "--help-all" else flag for flag in rest]
    try:
        check_versions()
        try:
            parser = command.make_parser(f"trl-pafo {name}", **short)
            parser.error = refuse
            parsed = parse(parser, rest)
        except TrlPafoError:
            raise
        except yaml.YAMLError as error:
            return _failed(2, f"trl-pafo {name}: --config is no YAML, or asks for more than plain values: {_first_lines(error)}")
        except ValueError as error:  # an unknown flag or YAML key, or an option that transformers refuses on this machine
            return _failed(2, f"trl-pafo {name}: {_first_lines(error)}")
        with room_needed(_place(parsed)):
            command.main(*parsed)
    except (TrlPafoError, OSError) as error:
        return _failed(1, f"trl-pafo {name}: {error}")
    except KeyboardInterrupt:
        print(f"trl-pafo {name}: interrupted.", file=sys.stderr)  # at once: nobody waits for others now
        return 130  # as a shell says it
    return 0


def _place(parsed: list[Any]) -> str:
    """Where a command writes."""
    given = [getattr(options, name, None) for options in parsed for name in ("output_dir", "output")]
    return next((str(place) for place in given if place), "the output")


def parse(parser: Any, argv: list[str]) -> list[Any]:
    """As TRL parses; what is left is refused by name, with the flag that was meant."""
    argv = [part for flag in argv for part in (flag.split("=", 1) if flag.startswith("--config=") else [flag])]
    if argv[-1:] == ["--config"]:
        raise ValueError("--config names no file.")
    *parsed, left = parser.parse_args_and_config(argv, return_remaining_strings=True)
    if unknown := [part.partition("=")[0] for part in left if part.startswith("--")]:
        known = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0], known, 1, cutoff=0.8)  # --data_path is not --datasets
        hint = f"Did you mean {near[0]}?" if near else f"`{parser.prog} --help` lists the flags."
        raise ValueError(f"{unknown[0]} is unknown. {hint}")
    if left:
        raise ValueError(f"{left[0]!r} belongs to no flag. Put a value with blanks in quotes.")
    return parsed


def refuse(message: str) -> NoReturn:
    """For parsers, whose own `error` prints all flags, which are hundreds, before what is wrong."""
    raise ValueError(message)


def _is_one_of_several() -> bool:
    """Whether a launcher has started this process beside others."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _failed(status: int, message: str) -> int:
    """The exit status, when it is said why; an error of all processes is said once."""
    if _is_one_of_several():  # else torch is not loaded for a few words
        from trl_pafo.models.ranks import say_once

        say_once(message)
    else:
        print(message, file=sys.stderr)
    return status


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
