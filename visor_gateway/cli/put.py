"""`visor add` and `update`: fields and bytes on their way to the gateway."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .command import gateway_options, options, run, words
from .records import print_image

if TYPE_CHECKING:
    from ..client import Client, Record
    from .progress import Report

_file_option = click.option(
    "--file", "-f", metavar="FILE", help="Image file to upload; - reads standard input, of whatever length."
)
_sha256_option = click.option("--sha256", metavar="HEX", help="SHA-256 that the uploaded bytes must have.")


@click.command()
@click.argument("fields", nargs=-1, required=True, callback=words, metavar="KEY=VALUE...")
@_file_option
@_sha256_option
@gateway_options
def add(fields: dict[str, str], file: str | None, sha256: str | None) -> None:
    """Register an image: name=... and architecture=..., what else is known, and its bytes with -f.

    With location=URL the bytes stay, or are fetched from, where they are. With neither, only metadata is registered.
    """
    with _source(file) as source, _progress(file) as report:
        image = run(
            lambda client: _beside(
                client, report, lambda id: client.create(fields, source, sha256=sha256, transfer_id=id, progress=report)
            )
        )
    print_image(image)


@click.command()
@click.argument("image")
@click.argument("fields", nargs=-1, callback=words, metavar="[KEY=VALUE]...")
@_file_option
@_sha256_option
@gateway_options
def update(image: str, fields: dict[str, str], file: str | None, sha256: str | None) -> None:
    """Change fields of IMAGE, or give bytes to one that has none. An empty value unsets a field."""
    if not fields and file is None:
        raise click.UsageError("Nothing to change: name KEY=VALUE, or a file with -f.")
    with _source(file) as source, _progress(file) as report:
        changed = run(
            lambda client: _beside(
                client,
                report,
                lambda id: client.update(image, fields, source, sha256=sha256, transfer_id=id, progress=report),
            )
        )
    print_image(changed)


@contextmanager
def _source(file: str | None) -> Generator[Any]:
    """What the library uploads for `-f`."""
    if file != "-":
        yield file
        return
    from ..client import FileBody

    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as stdin:
        yield FileBody(stdin)


async def _beside(client: Client, report: Report, send: Callable[[str], Awaitable[Record]]) -> Record:
    """Send, and show meanwhile what the gateway says of it."""
    from .beside import Beside

    beside, transfer_id = Beside(client, report.note), str(uuid.uuid4())
    if not options().json:
        beside.follow(transfer_id)
    async with beside.looking():
        return await send(transfer_id)


def _progress(file: str | None) -> AbstractContextManager[Report]:
    from . import progress

    label = "standard input" if file == "-" else Path(file or "").name
    return progress.shown(label, quiet=file is None or options().json)
