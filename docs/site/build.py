"""The documentation as a site: `make docs`, then open site/README.html.

Pages are those of the repository, in its layout, so that a link holds on the site where it holds there. Their order is that of docs/README.md.
Two pages are made from the code: every option of every command, and the public names with their docstrings. A warning stops it.
"""

import argparse
import importlib
import pkgutil
import re
import shutil
import sys
from pathlib import Path

import trl_pafo
from trl_pafo.cli import COMMANDS, TRAINING
from trl_pafo.cli.portfolio import COMMANDS as OF_PORTFOLIO

ROOT = Path(__file__).parents[2]
INDEX = "docs/README.md"
OPTIONS, API = (f"docs/{page}.md" for page in ("options", "api"))
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]


def commands() -> dict[str, tuple[str, bool]]:
    """Module of each command by its name, and whether it has a short form, with our own flags alone."""
    found = {name: (name, name in TRAINING) for name in COMMANDS if name != "portfolio"}
    return found | {f"portfolio {name}": ("portfolio", True) for name in OF_PORTFOLIO}


def parser_of(name: str, module: str, short: bool) -> argparse.ArgumentParser:
    """The parser of a command."""
    make = importlib.import_module(f"trl_pafo.cli.{module}").make_parser
    if module == "portfolio":
        return make(short=short).of(name.split()[1])
    return make(f"trl-pafo {name}", **({"short": True} if short else {}))


def cell(text: object) -> str:
    """Text for a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def options_page() -> str:
    """Every option of every command."""
    lines = [
        "# Options",
        "",
        "Made from the code. Commands that train also take every flag of TRL's RewardConfig, ModelConfig",
        "",
    ]
    lines[-2] += " and of transformers' TrainingArguments; `--help-all` lists them. What each command is for: [cli.md](cli.md)."
    for name, (module, short) in commands().items():
        lines += [f"## trl-pafo {name}", "", "| option | what it is, and its default |", "| --- | --- |"]
        for action in parser_of(name, module, short)._actions:
            if action.dest in ("help", "config") or not action.option_strings:
                continue
            flag = next(text for text in action.option_strings if text.startswith("--"))
            values = action.default if isinstance(action.default, list) else [action.default]
            default = "" if values[:1] in ([], [None], [""], [argparse.SUPPRESS]) else f" (`{cell(' '.join(map(str, values)))}`)"
            lines.append(f"| `{flag}` | {cell((action.help or '').replace('%%', '%'))}{default} |")
        lines.append("")
    return "\n".join(lines)


def api_page() -> str:
    """What `trl_pafo` and its wings name as theirs."""
    lines = ["# Python", "", "What users import, with docstrings. Made from the code.", ""]
    wings = [module.name for module in pkgutil.iter_modules(trl_pafo.__path__) if module.ispkg]
    for package in ("trl_pafo", *(f"trl_pafo.{wing}" for wing in wings)):
        module = importlib.import_module(package)
        names = [name for name in getattr(module, "__all__", ()) if not name.startswith("__")]
        if not names:
            continue
        lines += [f"## {package}", "", " ".join((module.__doc__ or "").split("\n\n")[0].split()), ""]
        for name in names:
            thing = getattr(module, name)
            home = getattr(thing, "__module__", "")
            if package != "trl_pafo" and name in trl_pafo.__all__:
                continue  # it stands above
            if not str(home).startswith("trl_pafo"):  # a value, or a type by another name
                what = f": {', '.join(map(str, thing))}" if isinstance(thing, dict | list | tuple) else ""
                lines += [f"`{package}.{name}`{what}", ""]
                continue
            directive = (
                f".. autoclass:: {package}.{name}\n   :members:"
                if isinstance(thing, type)
                else f".. autofunction:: {package}.{name}"
            )
            lines += ["```{eval-rst}", directive, "```", ""]
    return "\n".join(lines)


def navigation(index: str) -> str:
    """The pages of the index, a caption for each of its sections, as Sphinx takes them."""
    parts = []
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", index, re.MULTILINE | re.DOTALL):
        pages = [f"docs/{name.removesuffix('.md')}" for name in re.findall(r"^\| \[([\w.]+)\]", text, re.MULTILINE)]
        if title == "Reference":
            pages += [OPTIONS.removesuffix(".md"), API.removesuffix(".md")]
        if title == "Background":
            pages += ["CONTRIBUTING", "CHANGELOG"]
        parts += ["", "```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```"]
    return "\n".join(parts) + "\n"


def assemble(source: Path) -> None:
    """Copy the pages, and what they link to, and write those that are made."""
    pages = [
        *PAGES,
        *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")) if path != ROOT / INDEX),
    ]
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in pages}
    index = (ROOT / INDEX).read_text(encoding="utf-8")
    texts["README.md"] += navigation(index)
    texts[INDEX] = "---\norphan: true\n---\n" + index
    linked = {
        ((ROOT / page).parent / link.partition("#")[0]).resolve()
        for page, text in texts.items()
        for link in re.findall(r"\]\(([^)\s:#]+)[^)\s]*\)", text)
    }
    texts |= {OPTIONS: options_page(), API: api_page()}
    for path in linked:
        name = path.relative_to(ROOT).as_posix()
        if path.is_file() and name not in texts:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".md":
                texts[name] = "---\norphan: true\n---\n" + path.read_text(encoding="utf-8")
            else:
                shutil.copy(path, source / name)
    for name, text in texts.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text, encoding="utf-8")


def main() -> int:
    """Assemble the pages and build the site."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "site")
    out = parser.parse_args().output_dir
    source = out / ".source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    assemble(source)
    from sphinx.cmd.build import main as sphinx  # of requirements-docs.lock

    return sphinx(
        [
            "-W",
            "--keep-going",
            "-q",
            "-b",
            "html",
            "-c",
            str(Path(__file__).parent),
            "-d",
            str(out / ".doctrees"),
            str(source),
            str(out),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
