"""The lock files pin, with hashes, everything that pyproject.toml asks for. After a change there: `make lock`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
DOCUMENT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
#: Extras that are for those who work on the package.
DEVELOPMENT = {"dist", "lint", "servers", "test"}
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def pinned(name: str) -> dict[str, list[tuple[Requirement, int]]]:
    """Requirements of a lock file by name, each with how many hashes it has."""
    text = (ROOT / "distribution" / name).read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[tuple[Requirement, int]]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line.partition(" --hash")[0])
            found.setdefault(canonicalize_name(requirement.name), []).append((requirement, len(HASH.findall(line))))
    return found


def extras() -> set[str]:
    """The extras that the lock file is made with."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^EXTRAS = (.*)$", makefile, re.MULTILINE)
    return set(line.split())


def asked_for() -> Iterator[Requirement]:
    project = DOCUMENT["project"]
    yield from map(Requirement, project["dependencies"])
    for extra in sorted(extras()):
        yield from map(Requirement, project["optional-dependencies"][extra])


def test_a_host_gets_every_extra_but_those_of_development() -> None:
    assert extras() == set(DOCUMENT["project"]["optional-dependencies"]) - DEVELOPMENT


@pytest.mark.parametrize("requirement", list(asked_for()), ids=str)
def test_what_is_asked_for_is_pinned_to_a_version_that_fits(requirement: Requirement) -> None:
    pins = pinned("requirements.lock")[canonicalize_name(requirement.name)]
    for pin, _ in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert requirement.specifier.contains(Version(specifier.version)), (str(pin), str(requirement))


@pytest.mark.parametrize("name", ["requirements.lock", "build.lock"])
def test_everything_has_hashes_and_no_place_to_come_from(name: str) -> None:
    for pins in pinned(name).values():
        for pin, hashes in pins:
            assert hashes, pin
    text = (ROOT / "distribution" / name).read_text(encoding="utf-8")
    assert "://" not in text
    assert "--index" not in text


def test_the_tool_that_builds_the_package_is_pinned() -> None:
    for requirement in map(Requirement, DOCUMENT["build-system"]["requires"]):
        assert canonicalize_name(requirement.name) in pinned("build.lock")
