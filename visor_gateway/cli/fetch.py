"""`visor get`: where an image is put, and what is said of it then."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from . import output
from .command import Failure, gateway_options, options, run

if TYPE_CHECKING:
    from ..client import Client, Downloaded
    from .progress import Report

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


@click.command()
@click.argument("image")
@click.option(
    "--save",
    "-S",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Directory to save to; made if missing.  [default: .]",
)
@click.option("--output", "-o", "target", metavar="FILE", help="File to save as, in place of -S; - is standard output.")
@gateway_options
def get(image: str, save: Path | None, target: str | None) -> None:
    """Fetch IMAGE and save it as <DIR>/<id>.<format>.

    The file appears once every byte is there and right. A fetch that was cut, by whatever, is continued by the next.
    """
    if save is not None and target is not None:
        raise click.UsageError("Name a directory with -S or a file with -o, not both.")
    if target is not None and _is_stream(target):
        _fetch_to_stream(image, target)
    else:
        _fetch_to_file(image, Path(target) if target is not None else _path(image, save or Path()))


def _fetch_to_file(image: str, path: Path) -> None:
    from . import progress

    with progress.shown(path.name, quiet=options().json) as report:
        done = run(lambda client: _download(client, image, path, report))
    if options().json:
        output.print_json(_summary(done) | {"path": str(path)})
    else:
        click.echo(f"saved {output.byte_count(done.size)} as {output.text(path)}{_how(done)}")


async def _download(client: Client, image: str, target: Path | BinaryIO, report: Report) -> Downloaded:
    from ..client.download import no_begin
    from .beside import Beside

    beside = Beside(client, report.note)
    began = no_begin if options().json else beside.follow
    async with beside.looking():
        if isinstance(target, Path):
            return await client.download(image, target, progress=report, began=began)
        return await client.download_to(image, target, progress=report, began=began)


def _path(image: str, directory: Path) -> Path:
    """Where an image is saved. Names come from anyone: only an id and a format of their known forms make a path."""
    record = run(lambda client: client.head(image))
    kind = record.get("format") or "none"
    name = str(record.get("_id", ""))
    if not _PLAIN.match(name) or not _PLAIN.match(kind):
        raise Failure("The gateway's record of the image is not valid")
    directory.mkdir(parents=True, exist_ok=True)
    return directory / (name if kind == "none" else f"{name}.{kind}")


def _is_stream(target: str) -> bool:
    """Standard output, a pipe, a device: what can't be replaced by a finished file."""
    try:
        return target == "-" or not stat.S_ISREG(os.stat(target).st_mode)
    except FileNotFoundError:
        return False


def _fetch_to_stream(image: str, target: str) -> None:
    from . import progress

    with _writer(target) as writer, progress.shown(image, quiet=options().json) as report:
        done = run(lambda client: _download(client, image, writer, report))
        if stat.S_ISBLK(os.fstat(writer.fileno()).st_mode):
            os.fsync(writer.fileno())
    if options().json and target != "-":
        output.print_json(_summary(done) | {"path": target})


@contextmanager
def _writer(target: str) -> Generator[BinaryIO]:
    if target == "-":
        with open(sys.stdout.fileno(), "wb", buffering=0, closefd=False) as stdout:
            yield stdout
        return
    with open(target, "wb", buffering=0) as file:
        yield file


def _summary(done: Downloaded) -> dict[str, Any]:
    return {
        "image": done.record,
        "size": done.size,
        "sha256": done.sha256,
        "verified": done.verified,
        "resumed_at": done.resumed_at,
    }


def _how(done: Downloaded) -> str:
    notes = ["SHA-256 verified" if done.verified else "the gateway knows no SHA-256 of it yet"]
    if done.resumed_at:
        notes.append(f"continued at {output.byte_count(done.resumed_at)}")
    return f" ({', '.join(notes)})"
