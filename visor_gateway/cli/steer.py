"""`visor cancel`, `pause`, `resume`, `limit`: what is done to transfers while they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from . import output
from .command import byte_rate, gateway_options, options, query, run

if TYPE_CHECKING:
    from ..client import Record

_chosen = click.option(
    "--query",
    "-q",
    "filters",
    callback=query,
    default="",
    help="In place of TRANSFER: image, kind, state, store, user.",
)


@click.command()
@click.argument("transfer", required=False)
@_chosen
@gateway_options
def cancel(transfer: str | None, filters: list[tuple[str, str]]) -> None:
    """End TRANSFER, or all that -q names. Their peers see broken connections."""
    one, many = _one_or_many(transfer, filters)
    _print_changed(
        "cancelled",
        run(lambda client: client.transfers.cancel(one) if one else client.transfers.cancel_all(many)),
    )


@click.command()
@click.argument("transfer", required=False)
@_chosen
@gateway_options
def pause(transfer: str | None, filters: list[tuple[str, str]]) -> None:
    """Have TRANSFER, or all that -q names, move nothing until `visor resume`. Connections stay open."""
    _change("paused", transfer, filters, {"paused": True})


@click.command()
@click.argument("transfer", required=False)
@_chosen
@gateway_options
def resume(transfer: str | None, filters: list[tuple[str, str]]) -> None:
    """Have paused transfers go on: TRANSFER, or all that -q names."""
    _change("resumed", transfer, filters, {"paused": False})


@click.command()
@click.argument("rate", callback=byte_rate)
@click.argument("transfer", required=False)
@_chosen
@gateway_options
def limit(rate: int, transfer: str | None, filters: list[tuple[str, str]]) -> None:
    """Let TRANSFER, or all that -q names, move RATE bytes per second at most, such as 10MiB; none for no limit."""
    _change("limited", transfer, filters, {"limit_bytes_per_s": rate})


def _change(done: str, transfer: str | None, filters: list[tuple[str, str]], change: Mapping[str, object]) -> None:
    one, many = _one_or_many(transfer, filters)
    _print_changed(
        done,
        run(lambda client: client.transfers.change(one, change) if one else client.transfers.change_all(many, change)),
    )


def _one_or_many(transfer: str | None, filters: list[tuple[str, str]]) -> tuple[str, dict[str, str]]:
    if (transfer is None) == (not filters):
        raise click.UsageError("Name a transfer, or several with -q.")
    return transfer or "", dict(filters)


def _print_changed(done: str, answer: Record) -> None:
    """Show a transfer, or a listing, of which something was `done`."""
    several = "transfers" in answer
    if options().json:
        output.print_json(answer if several else {"transfer": answer})
        return
    for transfer in answer["transfers"] if several else [answer]:
        click.echo(f"{done} {output.text(transfer['id'])}")
