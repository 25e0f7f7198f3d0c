"""`visor copy` and `visor copies`: the bytes of an image in several stores."""

from __future__ import annotations

from typing import Final

import click

from . import output
from .command import gateway_options, options, run

LOCATION: Final = {
    "store": "STORE",
    "status": "STATUS",
    "size": "SIZE",
    "verified_at": "VERIFIED",
    "location": "LOCATION",
}


@click.command("copy")
@click.argument("image")
@click.argument("store")
@click.option("--wait", "-w", is_flag=True, help="Follow the copy to its end.")
@gateway_options
@click.pass_context
def copy(ctx: click.Context, image: str, store: str, wait: bool) -> None:
    """Copy the bytes of IMAGE into STORE, in the background."""
    transfer = run(lambda client: client.copies.add(image, store))
    if not wait:
        if options().json:
            output.print_json({"transfer": transfer})
        else:
            click.echo(f"copying: {output.text(transfer['id'])}")
        return
    from .display import display
    from .follow import Following

    with display(json=options().json) as show:
        code = run(lambda client: Following(client, str(transfer["id"]), {}, show).run())
    ctx.exit(code)


@click.command("copies")
@click.argument("image")
@click.option("--remove", metavar="STORE", help="Remove the bytes from this store; never from the last.")
@gateway_options
def copies(image: str, remove: str | None) -> None:
    """Show where the bytes of IMAGE are, in the order in which locations are read."""
    if remove is None:
        found = run(lambda client: client.copies.list(image))
    else:
        found = run(lambda client: client.copies.remove(image, remove))
    if options().json:
        output.print_json({"copies": found})
    else:
        output.print_table(LOCATION, found)
