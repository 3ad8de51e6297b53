"""The ranges of setup.cfg: what is pinned as the lowest is what is declared, and other versions are told in one line."""

import configparser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import trl_pafo
from trl_pafo.errors import ConfigError
from trl_pafo.storage.versions import BUILT_ON, check_versions

ROOT = Path(trl_pafo.__file__).parent.parent
# Older ones may do, but none was tried: no build without CUDA was at hand.
NOT_TRIED = {"torch"}


def declared() -> dict[str, Requirement]:
    """What the package needs, what reads the models in wheels that the tests use, and what a service needs."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = config["options.extras_require"]
    lines = [*config["options"]["install_requires"].split(), *extras["gguf"].split(), *extras["serve"].split()]
    return {requirement.name.lower(): requirement for requirement in map(Requirement, lines)}


def pinned(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {package.lower().replace("_", "-"): Version(version) for package, version in pins}


def lowest(requirement: Requirement) -> Version:
    (bound,) = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
    return bound


def test_the_lowest_that_is_declared_is_the_lowest_that_is_tested():
    pins = pinned("requirements-lowest.txt")
    assert set(pins) == set(declared())
    for name, requirement in declared().items():
        if name in NOT_TRIED:
            assert lowest(requirement) <= pins[name]
        else:
            assert lowest(requirement) == pins[name], f"{name}: setup.cfg says {requirement}, the tests run with {pins[name]}"


def test_the_lock_is_within_the_ranges():
    pins = pinned("requirements.lock")
    for name, requirement in declared().items():
        assert requirement.specifier.contains(pins[name]), f"{requirement}, but the lock has {pins[name]}"


def test_what_we_subclass_has_an_upper_bound():
    for name in BUILT_ON:
        assert any(part.operator == "<" for part in declared()[name].specifier), f"{name} has no upper bound"


def test_the_page_names_the_lowest_that_is_tested_and_a_highest_that_the_lock_does_not_exceed():
    page = (ROOT / "docs/versions.md").read_text(encoding="utf-8")
    low, locked = pinned("requirements-lowest.txt"), pinned("requirements.lock")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    tested = {row[0]: row[1:] for row in rows if row[0] in locked}
    for name in (*BUILT_ON, "datasets", "torch"):
        lowest_tested, highest_tested, specifier = tested[name]
        assert lowest_tested == str(low[name])
        assert Version(highest_tested) >= locked[name]
        assert set(specifier.strip("`").split(",")) == set(str(declared()[name].specifier).split(","))


def test_these_versions_pass():
    check_versions()
    check_versions([str(requirement) for requirement in declared().values()])


def test_other_versions_are_told_in_one_line(monkeypatch):
    found = {"trl": "1.15.0", "transformers": "6.0.0", "peft": "0.20.0", "accelerate": "1.10.1"}
    monkeypatch.setattr(metadata, "version", found.__getitem__)
    ranges = ["trl>=1.16,<2", "transformers>=5.18,<6", "peft>=0.20,<1", "accelerate>=1.10.1,<2", "numpy>=99"]
    with pytest.raises(ConfigError) as caught:
        check_versions(ranges)
    assert str(caught.value) == (
        "trl-pafo does not support the installed versions: trl is 1.15.0, transformers is 6.0.0. Run: pip install "
        "'trl<2,>=1.16' 'transformers<6,>=5.18'"
    )
    found |= {"trl": "1.17.0.dev0", "transformers": "5.24.0rc1"}
    check_versions(ranges)


def test_a_missing_library(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"peft is not installed.*pip install 'peft<1,>=0.20'"):
        check_versions(["peft>=0.20,<1"])
    monkeypatch.setattr(metadata, "requires", missing)  # as in a folder, which declares nothing
    check_versions()


def test_the_trainer_is_refused_and_the_package_is_not(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ["trl>=1.16,<2"])
    monkeypatch.setattr(metadata, "version", lambda name: "1.2.0")
    assert trl_pafo.__version__
    assert issubclass(ConfigError, trl_pafo.TrlPafoError)
    for name in ("PAFORewardTrainer", "PAFOConfig", "DataCollatorForGroupPreference"):
        with pytest.raises(ConfigError, match=r"trl is 1\.2\.0\. Run: pip install 'trl<2,>=1.16'"):
            getattr(trl_pafo, name)
