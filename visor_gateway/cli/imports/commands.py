"""`visor-admin import-glance`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ...image import ARCHITECTURES
from ..command import CommandT, Failure, gateway_options, options, run

if TYPE_CHECKING:
    from ...client import Client, Progress
    from .item import Item, Skipped
    from .place import Place

_FILE: Final = click.Path(path_type=Path, exists=True, dir_okay=False)
_DIRECTORY: Final = click.Path(path_type=Path, exists=True, file_okay=False)


def _import_options(command: CommandT) -> CommandT:
    for option in (
        click.option("--store", metavar="NAME", help="Store for the bytes.  [default: the gateway's]"),
        click.option("--dry-run", is_flag=True, help="Change nothing: check everything, and tell what would be done."),
    ):
        command = option(command)
    return command


def _architectures(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, _, own = value.partition("=")
        if not name or own not in ARCHITECTURES:
            raise click.BadParameter(f"'{value}' is not of the form NAME=ARCHITECTURE: {', '.join(ARCHITECTURES)}")
        pairs[name] = own
    return pairs


@click.command("import-glance")
@click.argument("lists", nargs=-1, required=True, type=_FILE, metavar="LIST...")
@click.option("--files", required=True, type=_DIRECTORY, metavar="DIR", help="Image files, each named by its id.")
@click.option("--architecture", type=click.Choice(ARCHITECTURES), help="That of images that name none.")
@click.option(
    "--rename-architecture",
    "renamed",
    multiple=True,
    callback=_architectures,
    metavar="NAME=ARCHITECTURE",
    help="What a name means that is unknown here, such as i686=i386.",
)
@_import_options
@gateway_options
def import_glance(
    lists: tuple[Path, ...],
    files: Path,
    architecture: str | None,
    renamed: dict[str, str],
    store: str | None,
    dry_run: bool,
) -> None:
    """Import images of OpenStack Glance: LIST has the answer to GET /v2/images, one file for each page of it.

    Sizes and digests are compared before a byte is sent. Run it again to continue: what is there is not sent twice.
    Ends with 0 if the gateway has every image of the list, or would have.
    """
    from . import glance
    from .item import Unfit
    from .place import Directory

    try:
        images = glance.read_pages([path.read_bytes() for path in lists])
    except Unfit as exc:
        raise Failure(f"{lists[-1]}: {exc}") from exc
    found = glance.Reader(architecture=architecture, renamed=renamed, store=store).read(images)
    _bring(found, glance.ID_ATTRIBUTE, Directory(files, "{id}"), dry_run=dry_run)


def _bring(found: Sequence[Item | Skipped], attribute: str, place: Place | None, *, dry_run: bool) -> None:
    from .. import progress
    from . import report
    from .importer import Importer, Outcome

    json = options().json

    def shown(name: str) -> AbstractContextManager[Progress]:
        return progress.shown(name, quiet=json)

    def tell(outcome: Outcome) -> None:
        if not json:
            report.print_outcome(outcome)

    async def bring(client: Client) -> list[Outcome]:
        return await Importer(client, attribute, place, dry_run=dry_run, progress=shown, tell=tell).run(found)

    outcomes = run(bring)
    report.print_totals(outcomes, json=json)
    if behind := report.left_behind(outcomes):
        raise Failure(f"{behind} of {len(outcomes)} images {'would not be' if dry_run else 'are not'} imported")
