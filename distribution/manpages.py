"""Man pages from what `--help` shows, one for each program: `manpages.py DIRECTORY`.

They are dated by SOURCE_DATE_EPOCH, so that the same sources make the same bytes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from visor_gateway import __version__
from visor_gateway.cli import admin, gateway, visor

PROGRAMS = {"visor": visor.cli, "visor-admin": admin.cli, "visor-gateway": gateway.cli}
DOCUMENTS = "docs/ of the source tree has configuration, protocol and operations."


def text(value: str) -> str:
    """Text as roff shows it, one line: nothing in it is a request, and a hyphen is a hyphen."""
    line = " ".join(value.split()).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{line}" if line.startswith((".", "'")) else line


def page(program: str, group: click.Group) -> Iterator[str]:
    """The lines of one page."""
    moment = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    yield f'.TH {program.upper()} 1 "{moment:%Y-%m-%d}" "visor-gateway {__version__}" "User Commands"'
    yield from (".SH NAME", f"{text(program)} \\- {text(first_sentence(group))}")
    yield from (".SH SYNOPSIS", f".B {text(program)}", text("[OPTIONS] COMMAND [ARGS]..."))
    yield from (".SH DESCRIPTION", text(group.help or ""))
    root = click.Context(group, info_name=program, **group.context_settings)
    yield ".SH OPTIONS"
    yield from options(group, root)
    yield ".SH COMMANDS"
    yield from commands(group, root)
    yield from (".SH EXIT STATUS", "0 on success, 1 on failure, 2 where it was called wrongly.")
    yield from (".SH SEE ALSO", ", ".join(f"{text(name)}(1)" for name in PROGRAMS if name != program) + ".")
    yield text(DOCUMENTS)


def first_sentence(command: click.Command) -> str:
    return (command.help or "").strip().partition(".")[0]


def commands(group: click.Group, parent: click.Context, prefix: str = "") -> Iterator[str]:
    """A section for each command; one that is there under two names has one."""
    seen = set()
    for name, command in group.commands.items():
        if command.hidden or id(command) in seen:
            continue
        seen.add(id(command))
        context = click.Context(command, info_name=name, parent=parent)
        if isinstance(command, click.Group):
            yield from commands(command, context, f"{prefix}{name} ")
            continue
        usage = " ".join(command.collect_usage_pieces(context))
        yield from (f".SS {text(prefix + name)} {text(usage)}", text(command.help or ""))
        yield from options(command, context, without=group.params)


def options(
    command: click.Command, context: click.Context, without: list[click.Parameter] | None = None
) -> Iterator[str]:
    """What the options of a command are; not those that its group has as well."""
    known = {tuple(parameter.opts) for parameter in without or ()}
    if without is not None:
        known.add(tuple(context.help_option_names))
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None and tuple(parameter.opts) not in known:
            yield from (".TP", f".B {text(record[0])}", text(record[1]) or "\\&")


def main() -> None:
    """Write all pages."""
    for program, group in PROGRAMS.items():
        Path(sys.argv[1], f"{program}.1").write_text("\n".join(page(program, group)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
