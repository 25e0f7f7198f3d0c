"""`visor-admin import-glance` and `import-visor`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

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


@click.command("import-visor")
@click.option("--meta", metavar="URL", help="A running Meta server: http://HOST:4567.")
@click.option("--owner", "owners", multiple=True, help="Whose private images to ask the Meta server for.")
@click.option("--dump", type=_FILE, help="What mysqldump wrote of its database, in place of --meta.")
@click.option("--images", metavar="URL", help="Image server to pull the bytes from: http://HOST:4568.")
@click.option("--images-credentials", type=_FILE, help="File with access_key and secret_key for it.")
@click.option("--spool", type=_DIRECTORY, help="Where pulled images wait for their upload.  [default: temporary files]")
@click.option("--files", type=_DIRECTORY, metavar="DIR", help="Image files, in place of --images: ID.FORMAT or ID.")
@_import_options
@gateway_options
def import_visor(
    meta: str | None,
    owners: tuple[str, ...],
    dump: Path | None,
    images: str | None,
    images_credentials: Path | None,
    spool: Path | None,
    files: Path | None,
    store: str | None,
    dry_run: bool,
) -> None:
    """Import images of VISOR: records from its Meta server or its database, bytes from its image server or from files.

    Sizes and digests are compared before a byte is sent. Run it again to continue: what is there is not sent twice.
    Ends with 0 if the gateway has every image that was found, or would have.
    """
    if (meta is None) is (dump is None):
        raise click.UsageError("Say where the records are: --meta or --dump.")
    if images is not None and files is not None:
        raise click.UsageError("Say where the bytes are: --images or --files, not both.")
    if owners and meta is None:
        raise click.UsageError("--owner goes with --meta: a dump has every image.")
    if images is None and (images_credentials or spool):
        raise click.UsageError("--images-credentials and --spool go with --images.")
    from . import visor
    from .place import Directory

    found = visor.Reader(store=store).read(_dumped(dump) if dump is not None else _listed(meta, owners))
    if images is None:
        place = None if files is None else Directory(files, "{id}.{format}", "{id}")
        _bring(found, visor.ID_ATTRIBUTE, place, dry_run=dry_run)
        return
    with tempfile.TemporaryDirectory(prefix="visor-import-", dir=spool) as directory:
        server = _image_server(images, images_credentials)
        _bring(found, visor.ID_ATTRIBUTE, None, dry_run=dry_run, pulling=(server, Path(directory)))


def _listed(url: str | None, owners: tuple[str, ...]) -> list[Any]:
    import trio

    from ...errors import ConfigError
    from . import meta_server

    try:
        return trio.run(meta_server.listed, f"visor+{str(url).removeprefix('visor+')}", owners)
    except ConfigError as exc:
        raise click.BadParameter(
            "expected http://HOST[:PORT] or https://[:KEY@]HOST[:PORT]", param_hint="--meta"
        ) from exc


def _dumped(dump: Path) -> list[Any]:
    from . import mysqldump, visor
    from .item import Unfit

    try:
        return [visor.with_zone(row) for row in mysqldump.read_rows(dump.read_bytes(), "images")]
    except Unfit as exc:
        raise Failure(f"{dump}: {exc}") from exc


def _image_server(url: str, credentials: Path | None) -> Client:
    """A client that signs as VISOR's own did."""
    from ... import signature
    from ...client import Client, KeyPair
    from ...client.credentials import read

    keys = None if credentials is None else read(credentials).credentials
    if isinstance(keys, KeyPair):
        keys = KeyPair(keys.access_key, keys.secret_key, signature.SHA1)
    return Client(url, keys)


def _bring(
    found: Sequence[Item | Skipped],
    attribute: str,
    place: Place | None,
    *,
    dry_run: bool,
    pulling: tuple[Client, Path] | None = None,
) -> None:
    from .. import progress
    from . import report
    from .importer import Importer, Outcome
    from .place import ImageServer

    json = options().json

    def shown(name: str) -> AbstractContextManager[Progress]:
        return progress.shown(name, quiet=json)

    def tell(outcome: Outcome) -> None:
        if not json:
            report.print_outcome(outcome)

    async def bring(client: Client) -> list[Outcome]:
        async with AsyncExitStack() as stack:
            source = place
            if pulling is not None:
                source = ImageServer(await stack.enter_async_context(pulling[0]), pulling[1])
            importer = Importer(client, attribute, source, dry_run=dry_run, progress=shown, tell=tell)
            return await importer.run(found)

    outcomes = run(bring)
    report.print_totals(outcomes, json=json)
    if behind := report.left_behind(outcomes):
        raise Failure(f"{behind} of {len(outcomes)} images {'would not be' if dry_run else 'are not'} imported")
