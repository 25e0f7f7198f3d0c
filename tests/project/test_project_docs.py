"""The documents say what the code does: settings, routes, metrics, commands, signatures, links."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from visor_gateway import __version__, signature
from visor_gateway.cli import admin, gateway, visor
from visor_gateway.config import STORE_TYPES, sample
from visor_gateway.config.loading import located
from visor_gateway.config.settings import SECTIONS, Section, shown
from visor_gateway.errors import MethodNotAllowed
from visor_gateway.image import CHOICES, SHOWN
from visor_gateway.metrics import Metrics
from visor_gateway.routes import openapi
from visor_gateway.routes.role_app import ROLE_ROUTES
from visor_gateway.routes.routes import ROUTES
from visor_gateway.routes.table import Kind, Policy, RouteTable

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def document(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    (found,) = re.findall(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)", text, re.MULTILINE | re.DOTALL)
    return str(found)


def rows(text: str) -> list[list[str]]:
    """The cells of every row of the tables in a text, but for their heads."""
    lines = [line.strip()[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")] for line in lines if not line.startswith("---")]


# --- configuration ---------------------------------------------------------------------------------


def sections() -> Iterator[tuple[str, type[Section]]]:
    yield from SECTIONS.items()
    yield from ((f"stores.{name}", cls) for name, cls in STORE_TYPES.items())


def default(prefix: str, key: str, value: object) -> str:
    places = {name: given.value for name, given in located(Path("DATA"), {}).items()}
    place = places.get(f"{prefix}.{key}")
    if place is not None:
        return f"`{json.dumps(place)}`"
    if value is msgspec.NODEFAULT:
        return "must be given"
    return "unset" if value is None else f"`{json.dumps(shown(value))}`"


@pytest.mark.parametrize(("name", "cls"), list(sections()), ids=lambda value: value if isinstance(value, str) else "")
def test_configuration_tells_every_setting_with_its_default_and_meaning(name: str, cls: type[Section]) -> None:
    told = [row for row in rows(section(document("configuration.md"), f"### [{name}]")) if row[0].startswith("`")]
    assert told == [[f"`{d.key}`", default(name, d.key, d.default), d.meaning, d.kind.expected] for d in cls.declared()]


def test_configuration_tells_of_no_section_that_is_not_there() -> None:
    headings = re.findall(r"^### \[(.*)\]$", document("configuration.md"), re.MULTILINE)
    assert headings == [name for name, _ in sections()]


def test_the_sample_for_systemd_is_the_one_that_init_writes() -> None:
    written = (ROOT / "systemd/visor-gateway.toml").read_text(encoding="utf-8")
    assert written == sample(Path("/var/lib/visor-gateway"), {"CACHE_DIRECTORY": "/var/cache/visor-gateway"})


# --- protocol --------------------------------------------------------------------------------------

WHO = {
    Policy.OPEN: "open",
    Policy.NETWORK: "network",
    Policy.READ: "read",
    Policy.USER: "user",
    Policy.ADMIN: "admin",
    Policy.GATEWAY: "gateway",
    Policy.PEER: "peer",
    Policy.KNOWN_PEER: "known peer",
}


def test_protocol_tells_every_route_with_who_may_ask() -> None:
    told = {row[0]: row[1] for row in rows(section(document("protocol.md"), "## Routes")) if row[0].startswith("`")}
    assert told == {f"`{route.method} {route.path}`": WHO[route.policy] for route in ROUTES if route.policy}


@pytest.mark.parametrize("role", ROLE_ROUTES)
def test_protocol_tells_every_route_of_a_role_with_who_may_ask(role: str) -> None:
    told = section(document("protocol.md"), f"### The {role.title()} API")
    found = {row[0]: row[1] for row in rows(told) if row[0].startswith("`")}
    assert found == {f"`{route.method} {route.path}`": WHO[route.policy] for route in ROLE_ROUTES[role] if route.policy}


def test_protocol_tells_every_metric_with_its_labels() -> None:
    told = {row[0]: row[1] for row in rows(section(document("protocol.md"), "## Metrics")) if row[0].startswith("`")}
    counted = {}
    for metric in vars(Metrics()).values():
        if hasattr(metric, "_labelnames"):
            name = metric._name + ("_total" if metric._type == "counter" else "")
            counted[f"`{name}`"] = f"`{' '.join(metric._labelnames)}`" if metric._labelnames else ""
    assert told == counted


def test_protocol_tells_every_field_of_the_record_and_its_values() -> None:
    told = section(document("protocol.md"), "## The record")
    for name in (*SHOWN, "sha256"):
        assert f"`{name}`" in told
    for values in CHOICES.values():
        for value in values:
            assert f"`{value}`" in told


def test_protocol_shows_signatures_that_are_right() -> None:
    text = section(document("protocol.md"), "### Signatures")
    requests = re.findall(r"```http\n(.*?)\n```", text, re.DOTALL)
    canonical = re.findall(r"```text\n(.*?)\n```", text, re.DOTALL)
    values = re.findall(r"`Authorization: ([^`<]+)`", text)
    assert len(requests) == len(canonical) == len(values) == 2
    for request, expected, value in zip(requests, canonical, values, strict=True):
        first, *lines = request.splitlines()
        method, target, _ = first.split(" ")
        headers = [(name.encode(), item.encode()) for name, item in (line.split(": ") for line in lines)]
        scheme = value.split(" ")[0]
        assert signature.canonical_text(scheme, method, target.encode(), headers).decode() == expected
        made = signature.authorization(scheme, method, target.encode(), headers, "admin", "a-secret-of-this-example")
        assert made == value


# --- operations ------------------------------------------------------------------------------------

LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


def logged_events() -> Iterator[str]:
    """The text of every line that the package logs by a name of its own."""
    yield "request"  # the access log's, which is prepared
    for path in (ROOT / "visor_gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="_log"), attr=level), args=[event, *_]):
                    if level in LEVELS:
                        assert isinstance(event, ast.Constant), f"{path}:{node.lineno}: an event is a constant"
                        yield str(event.value)


def test_operations_tells_every_log_line_and_no_other() -> None:
    told = [row[0] for row in rows(section(document("operations.md"), "## Log lines")) if row[0].startswith("`")]
    assert sorted(told) == sorted(f"`{event}`" for event in set(logged_events()))


def test_operations_names_only_metrics_that_there_are() -> None:
    known = set(re.findall(r"^\| `(visor_\w+)`", section(document("protocol.md"), "## Metrics"), re.MULTILINE))
    assert set(re.findall(r"`(visor_[a-z_]+)`", document("operations.md"))) <= known


def test_operations_gives_a_reason_for_every_setting_of_the_units() -> None:
    units = [path for path in (ROOT / "systemd").iterdir() if path.suffix in {".service", ".socket"}]
    lines = [line for path in units for line in path.read_text(encoding="utf-8").splitlines()]
    given = {line.partition("=")[0] for line in lines if re.match(r"[A-Z]", line)} - {"Description"}
    told = set(re.findall(r"`([A-Z]\w+)=", section(document("operations.md"), "## systemd settings")))
    assert given <= told, given - told


# --- OpenAPI ---------------------------------------------------------------------------------------


def test_the_api_description_names_exactly_the_routes_that_there_are() -> None:
    described = {
        (method.upper(), path) for path, methods in openapi.document(ROUTES)["paths"].items() for method in methods
    }
    # The files of the page are no part of the API.
    assert described == {(route.method, route.path) for route in ROUTES if route.kind is not Kind.PAGE}


def test_the_api_description_is_complete_json() -> None:
    made = json.loads(msgspec.json.encode(openapi.document(ROUTES)))
    assert made["info"]["version"] == __version__
    ids = [operation["operationId"] for methods in made["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))
    for path, methods in made["paths"].items():
        for operation in methods.values():
            assert [parameter["name"] for parameter in operation["parameters"]] == re.findall(r"\{(\w+)\}", path)
            assert operation["responses"]


def test_what_the_description_lists_for_a_path_is_what_the_gateway_allows() -> None:
    table = RouteTable(ROUTES)
    for path, methods in openapi.document(ROUTES)["paths"].items():
        with pytest.raises(MethodNotAllowed) as caught:
            table.find("PATCHY", re.sub(r"\{\w+\}", "00000000-0000-4000-8000-000000000000", path))
        assert dict(caught.value.headers)["allow"].split(", ") == sorted(method.upper() for method in methods)


# --- commands --------------------------------------------------------------------------------------


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Commands by name, those of groups as `group command`; one object under two names counts once."""
    seen = set()
    for name, command in group.commands.items():
        if command.hidden or id(command) in seen:
            continue
        seen.add(id(command))
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


PROGRAMS = {"visor-gateway": gateway.cli, "visor": visor.cli, "visor-admin": admin.cli}


@pytest.mark.parametrize("program", PROGRAMS)
def test_cli_tells_every_command_and_no_other(program: str) -> None:
    told = {row[0].strip("`") for row in rows(section(document("cli.md"), f"## {program}")) if row[0].startswith("`")}
    assert told == {name for name, _ in commands(PROGRAMS[program])}


@pytest.mark.parametrize("program", PROGRAMS)
def test_cli_tells_every_option(program: str) -> None:
    text = document("cli.md")
    common = section(text, "## visor and visor-admin: which gateway, and as whom") + text.partition("\n## ")[0]
    told = {row[0].strip("`"): row[1] for row in rows(section(text, f"## {program}")) if len(row) > 1}
    for name, command in commands(PROGRAMS[program]):
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                long = max(parameter.opts, key=len)
                assert any(f"`{option}" in told[name] + common for option in (long, *parameter.opts)), (name, long)


def test_makefile_help_names_every_target_that_the_documents_use() -> None:
    targets = set(re.findall(r"^([a-z]+):.*?## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"help", "run", "test", "lint", "type", "bench", "docs", "dist"} <= targets
    for path in DOCUMENTS:
        used = re.findall(r"\bmake ([a-z]+(?: [a-z]+)*)`", path.read_text()) + re.findall(
            r"^make ([a-z]+)", path.read_text(), re.MULTILINE
        )
        for words in used:
            assert set(words.split()) <= targets, path


# --- the texts themselves --------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        found = path.parent / name if name else path
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_modules_that_documents_name_are_there(path: Path) -> None:
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", path.read_text(encoding="utf-8")):
        assert (ROOT / name).exists() or (ROOT / "visor_gateway" / name).exists(), name


def test_every_dependency_has_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = document("decisions.md")
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    for requirement in wanted:
        name = re.match(r"[\w.-]+", requirement)
        assert name is not None
        assert f"`{name[0]}`" in told, name[0]


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == __version__
