"""Whether the libraries that the trainer builds on are of versions that it was made for."""

from collections.abc import Iterable
from importlib import metadata

from packaging.requirements import Requirement

from trl_pafo.errors import ConfigError

__version__ = "0.1.0"

BUILT_ON = ("trl", "transformers", "peft", "accelerate")


def check_versions(requirements: Iterable[str] | None = None) -> None:
    """Raise where a library is of another version than this package declares; pip keeps to the ranges only as it installs.

    Nothing is imported, and development versions count as the version that they lead to.

    Args:
        requirements (`Iterable[str]`, *optional*):
            Requirements as in a `setup.cfg`. Defaults to those of the installed trl-pafo; none, if it runs from a folder.

    Raises:
        ConfigError: If a version is out of its range, or a library is missing. The message has the command that installs another.
    """
    wrong = []
    for requirement in map(Requirement, _declared() if requirements is None else requirements):
        if requirement.name not in BUILT_ON or requirement.marker is not None:
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append((requirement, f"{requirement.name} is not installed"))
            continue
        if not requirement.specifier.contains(found.split(".dev")[0], prereleases=True):
            wrong.append((requirement, f"{requirement.name} is {found}"))
    if wrong:
        wanted = " ".join(f"'{requirement.name}{requirement.specifier}'" for requirement, _ in wrong)
        raise ConfigError(
            f"trl-pafo was not made for the versions that are installed: {', '.join(what for _, what in wrong)}. Run: pip install {wanted}"
        )


def _declared() -> list[str]:
    try:
        return metadata.requires("trl-pafo") or []
    except metadata.PackageNotFoundError:
        return []
