"""`visor brief`, `detail`, `head`, `delete`, `link`: records of images."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from . import output
from .command import gateway_options, options, query, run

if TYPE_CHECKING:
    from ..client import Client, Record

BRIEF: Final = {
    "_id": "ID",
    "name": "NAME",
    "architecture": "ARCHITECTURE",
    "type": "TYPE",
    "format": "FORMAT",
    "store": "STORE",
    "size": "SIZE",
    "created_at": "CREATED",
}
#: Parameters of a list that VISOR's users write into the query.
_LIST_PARAMETERS: Final = ("sort", "dir", "limit")


def _list_options(command: Any) -> Any:
    for option in (
        click.option("--limit", type=click.IntRange(1), help="Images at most."),
        click.option("--dir", "-d", "direction", type=click.Choice(["asc", "desc"]), help="Direction of the order."),
        click.option("--sort", "-s", metavar="ATTR", help="Attribute to sort by."),
        click.option(
            "--query", "-q", "filters", callback=query, default="", help="Attributes that must match: a=b&c=d."
        ),
    ):
        command = option(command)
    return command


@click.command()
@_list_options
@gateway_options
def brief(filters: list[tuple[str, str]], sort: str | None, direction: str | None, limit: int | None) -> None:
    """List images, with their main fields."""
    images = _images(filters, sort, direction, limit, detail=False)
    if options().json:
        output.print_json({"images": images})
    elif images:
        output.print_table(BRIEF, images)
    else:
        click.echo("No images found.", err=True)


@click.command()
@_list_options
@gateway_options
def detail(filters: list[tuple[str, str]], sort: str | None, direction: str | None, limit: int | None) -> None:
    """List images, with every field."""
    images = _images(filters, sort, direction, limit, detail=True)
    if options().json:
        output.print_json({"images": images})
        return
    for number, image in enumerate(images):
        if number:
            click.echo()
        output.print_record(image)
    if not images:
        click.echo("No images found.", err=True)


def _images(
    filters: list[tuple[str, str]], sort: str | None, direction: str | None, limit: int | None, *, detail: bool
) -> list[Record]:
    written = dict(pair for pair in filters if pair[0] in _LIST_PARAMETERS)
    wanted = written.get("limit", "")
    if wanted and not (wanted.isascii() and wanted.isdigit() and int(wanted)):
        raise click.UsageError(f"'{wanted}' is no limit")
    descending = (direction or written.get("dir", "asc")) == "desc"
    return run(
        lambda client: client.images(
            [pair for pair in filters if pair[0] not in _LIST_PARAMETERS],
            detail=detail,
            sort=sort or written.get("sort"),
            descending=descending,
            limit=limit or (int(wanted) if wanted else None),
        ).collect()
    )


@click.command()
@click.argument("image")
@gateway_options
def head(image: str) -> None:
    """Show the record of IMAGE."""
    print_image(run(lambda client: client.head(image)))


def print_image(image: Record) -> None:
    if options().json:
        output.print_json({"image": image})
    else:
        output.print_record(image)


@click.command()
@click.argument("images", nargs=-1, metavar="IMAGE...")
@click.option("--all", "everything", is_flag=True, help="Every image that you may delete. For admins.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before deleting everything.")
@gateway_options
def delete(images: tuple[str, ...], everything: bool, yes: bool) -> None:
    """Remove images, records and bytes."""
    if bool(images) == everything:
        raise click.UsageError("Name the images to delete, or --all.")
    if not everything:
        run(lambda client: _delete_each(client, images))
        return
    if not yes and sys.stdin.isatty():
        click.confirm("Delete every image of this gateway?", abort=True, err=True)
    answer = run(lambda client: client.delete_all())
    if options().json:
        output.print_json(answer)
    else:
        click.echo(f"deleted {len(answer.get('images', ()))} images")


async def _delete_each(client: Client, images: tuple[str, ...]) -> None:
    for image in images:
        record = await client.delete(image)
        if options().json:
            output.print_json({"image": record})
        else:
            click.echo(f"deleted {output.text(record['_id'])}")


@click.command()
@click.argument("image")
@click.option("--expires", type=click.IntRange(1), metavar="SECONDS", help="How long the link is good for.")
@gateway_options
def link(image: str, expires: int | None) -> None:
    """Make a link with which anyone may fetch IMAGE until it expires: for curl, qemu, iPXE."""
    made = run(lambda client: client.link(image, expires_in=expires))
    if options().json:
        output.print_json({"link": made})
    else:
        click.echo(made["uri"])
