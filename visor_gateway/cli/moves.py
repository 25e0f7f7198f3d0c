"""`visor transfers`, `watch`, `top`: what moves on the gateway."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from . import output
from .command import gateway_options, options, query, run

if TYPE_CHECKING:
    from ..client import Client, Record

PLAIN_SECONDS: Final = 30.0  # between tables of `top --plain`


@click.command()
@click.option(
    "--query", "-q", "filters", callback=query, default="", help="image, kind, state, store or user that must match."
)
@click.option("--watch", "follow", is_flag=True, help="Go on showing them, until interrupted.")
@click.option("--history", "ended", is_flag=True, help="What ended, in place of what moves.")
@click.option("--limit", type=click.IntRange(1, 1000), help="How many of what ended.  [default: 100]")
@gateway_options
@click.pass_context
def transfers(ctx: click.Context, filters: list[tuple[str, str]], follow: bool, ended: bool, limit: int | None) -> None:
    """List what moves on the gateway, or what ended."""
    if (ended and follow) or (limit and not ended):
        raise click.UsageError("--limit is for --history, which --watch can't be combined with.")
    if ended:
        _print_history(run(lambda client: client.transfers.history(dict(filters), limit=limit or 100)))
        return
    if follow:
        _follow(ctx, None, dict(filters))
    _print_transfers(run(lambda client: client.transfers.list(dict(filters))))


@click.command()
@click.argument("wanted", required=False, metavar="[IMAGE|TRANSFER]")
@gateway_options
@click.pass_context
def watch(ctx: click.Context, wanted: str | None) -> None:
    """Follow transfers as they happen: one, those of an image, or all.

    Ends when the transfer, or the last one of the image, has ended: with 0 if it finished, with 1 if it failed or was
    cancelled. An image of which nothing moves yet is waited for.
    """
    _follow(ctx, wanted, {})


@click.command()
@click.option("--once", is_flag=True, help="Show it once.")
@click.option("--plain", is_flag=True, help="A table now and then, for logs.")
@click.option("--every", type=click.FloatRange(0.2), metavar="SECONDS", help="Seconds between tables.  [default: 30]")
@gateway_options
def top(once: bool, plain: bool, every: float | None) -> None:
    """Show what moves on the gateway on the whole screen; keys sort, filter, group, pause, limit and cancel.

    Where there is no terminal, or with --once or --json, a table once.
    """
    if every is not None and not plain:
        raise click.UsageError("--every is for --plain.")
    if plain and not once:
        run(lambda client: _print_again(client, every or PLAIN_SECONDS))
    elif once or options().json or not (sys.stdout.isatty() and sys.stdin.isatty()):
        _print_transfers(run(lambda client: client.transfers.list()))
    else:
        from .top.run import watch as watch_screen

        run(watch_screen)


async def _print_again(client: Client, seconds: float) -> None:
    """Print tables until interrupted. A gateway that is away for a while is waited for, once it was reached."""
    import anyio

    from ..client import ConnectionBroken, Unreachable

    reached = False
    while True:
        try:
            _print_transfers(await client.transfers.list())
            reached = True
        except (ConnectionBroken, Unreachable) as error:
            if not reached:
                raise
            click.echo(str(error), err=True)
        await anyio.sleep(seconds)


def _follow(ctx: click.Context, wanted: str | None, filters: Mapping[str, str]) -> NoReturn:
    from .display import display
    from .follow import Following

    with display(json=options().json) as show:
        code = run(lambda client: Following(client, wanted, filters, show).run())
    ctx.exit(code)


def _print_history(listing: Record) -> None:
    from .display import print_history

    if options().json:
        output.print_json(listing)
    else:
        print_history(listing)


def _print_transfers(listing: Mapping[str, Any]) -> None:
    from .display import print_transfers

    if options().json:
        output.print_json(listing)
    else:
        print_transfers(listing)
