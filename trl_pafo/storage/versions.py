"""Whether trl, transformers, peft and accelerate have versions that the trainer supports."""

from collections.abc import Iterable
from importlib import metadata

from packaging.requirements import Requirement

from trl_pafo.errors import ConfigError

__version__ = "0.2.0"

BUILT_ON = ("trl", "transformers", "peft", "accelerate")


def check_versions(requirements: Iterable[str] | None = None) -> None:
    """Raise if a library has a version that this package does not declare: pip keeps to the ranges only while it installs.

    Nothing is imported, and a development version counts as the version that it precedes. The requirements are those of the
    installed trl-pafo; none, if it runs from a folder.

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
            f"trl-pafo does not support the installed versions: {', '.join(what for _, what in wrong)}. Run: pip install {wanted}"
        )


def _declared() -> list[str]:
    try:
        return metadata.requires("trl-pafo") or []
    except metadata.PackageNotFoundError:
        return []
