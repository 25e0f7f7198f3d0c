"""`visor-admin cache`: local copies of images that live in remote stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from . import output
from .command import gateway_options, options, run

if TYPE_CHECKING:
    from ..client import Client, Record

ENTRY: Final = {"image": "IMAGE", "size": "SIZE", "used_at": "USED"}


@click.group("cache")
@gateway_options
def cache() -> None:
    """Local copies of images that live in remote stores."""


@cache.command("list")
@gateway_options
def list_entries() -> None:
    """Show what is in the cache, the least recently used first."""
    state = run(lambda client: client.cache.state())
    if options().json:
        output.print_json({"cache": state})
    elif not state["max_bytes"]:
        click.echo("the cache is off")
    else:
        click.echo(f"{output.byte_count(state['bytes'])} of {output.byte_count(state['max_bytes'])}")
        if state["entries"]:
            output.print_table(ENTRY, state["entries"])


@cache.command("warm")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@gateway_options
def warm(images: tuple[str, ...]) -> None:
    """Have images cached, in the background, ahead of those who will ask for them."""
    run(lambda client: _warm_each(client, images))


async def _warm_each(client: Client, images: tuple[str, ...]) -> None:
    for image_id in images:
        state = await client.cache.warm(image_id)
        if options().json:
            output.print_json({"cache": state})
        else:
            click.echo(f"warming {output.text(image_id)}")


@cache.command("purge")
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--all", "everything", is_flag=True, help="Everything.")
@gateway_options
def purge(images: tuple[str, ...], everything: bool) -> None:
    """Remove images from the cache, or all of them. Pulls under way run on."""
    if bool(images) == everything:
        raise click.UsageError("Name images, or --all.")
    removed = run(lambda client: _purge(client, images))
    if options().json:
        output.print_json({"removed": removed})
    else:
        for entry in removed:
            click.echo(f"removed {output.text(entry['image'])}")


async def _purge(client: Client, images: tuple[str, ...]) -> list[Record]:
    removed: list[Record] = []
    for image_id in images or (None,):
        removed += await client.cache.purge(image_id)
    return removed
