"""`visor-admin`: users, their secrets and tokens, scrubs, limits, the cache, the master key, and backups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from .. import __version__
from . import output
from .cached import cache
from .command import (
    CONTEXT,
    Commands,
    CommandT,
    add_common_commands,
    byte_rate,
    gateway_options,
    options,
    query,
    run,
    word,
    words,
)
from .imports.commands import import_glance, import_visor

if TYPE_CHECKING:
    from ..client import Client, Record
    from ..config import Settings
    from ..datadir import DataDirectory

PROGRAM: Final = "visor-admin"
USER: Final = {"access_key": "ACCESS KEY", "email": "EMAIL", "role": "ROLE", "created_at": "CREATED"}
TOKEN: Final = {"id": "ID", "name": "NAME", "read_only": "READ ONLY", "created_at": "CREATED", "expires_at": "EXPIRES"}
BAD: Final = {"_id": "ID", "name": "NAME", "store": "STORE", "bad_since": "BAD SINCE"}

_PATH: Final = click.Path(path_type=Path)


@click.group(cls=Commands, context_settings=CONTEXT)
@gateway_options
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Manage users, and look after images. New secrets are printed once, and can't be had again."""


@cli.command("list")
@click.option("--query", "-q", "filters", callback=query, default="", help="Fields that must match: a=b&c=d.")
@gateway_options
def list_users(filters: list[tuple[str, str]]) -> None:
    """List users."""
    users = run(lambda client: client.users.list(dict(filters)))
    if options().json:
        output.print_json({"users": users})
    else:
        output.print_table(USER, users)


@cli.command()
@click.argument("user", metavar="ACCESS_KEY")
@gateway_options
def get(user: str) -> None:
    """Show a user."""
    _print_user(run(lambda client: client.users.get(user)))


@cli.command()
@click.argument("user", metavar="ACCESS_KEY")
@click.argument("fields", nargs=-1, callback=words, metavar="KEY=VALUE...")
@gateway_options
def add(user: str, fields: dict[str, str]) -> None:
    """Add a user: its access key, email=..., and role=user or role=admin. Prints its new secret key."""
    first = word(user) if "=" in user else ("access_key", user)
    _print_user(run(lambda client: client.users.add(dict([first]) | fields)))


@cli.command()
@click.argument("user", metavar="ACCESS_KEY")
@click.argument("fields", nargs=-1, required=True, callback=words, metavar="KEY=VALUE...")
@gateway_options
def update(user: str, fields: dict[str, str]) -> None:
    """Change email=... or role=... of a user."""
    _print_user(run(lambda client: client.users.update(user, fields)))


@cli.command()
@click.argument("names", nargs=-1, required=True, metavar="ACCESS_KEY...")
@gateway_options
def delete(names: tuple[str, ...]) -> None:
    """Remove users, with their tokens and links. An access key is never given again."""
    run(lambda client: _delete_each(client, names))


async def _delete_each(client: Client, names: tuple[str, ...]) -> None:
    for name in names:
        user = await client.users.delete(name)
        if options().json:
            output.print_json({"user": user})
        else:
            click.echo(f"deleted {output.text(user['access_key'])}")


@cli.command()
@click.argument("user", metavar="ACCESS_KEY")
@gateway_options
def rotate(user: str) -> None:
    """Give a user a new secret key and print it. The old one, and links made with it, are void at once."""
    _print_user(run(lambda client: client.users.rotate(user)))


def _print_user(user: Record) -> None:
    if options().json:
        output.print_json({"user": user})
    else:
        output.print_record(user)


# --- tokens ------------------------------------------------------------------------------------


@cli.group("token")
@gateway_options
def token() -> None:
    """Bearer tokens of a user."""


cli.add_command(token, "tokens")


@token.command("issue")
@click.argument("user", metavar="ACCESS_KEY")
@click.option("--expires", type=click.IntRange(1), metavar="SECONDS", help="How long the token is good for.")
@click.option("--read-only", is_flag=True, help="Good for reading only.")
@click.option("--name", help="What it is for.")
@gateway_options
def issue(user: str, expires: int | None, read_only: bool, name: str | None) -> None:
    """Make a token and print it."""
    _print_token(run(lambda client: client.users.issue_token(user, expires_in=expires, read_only=read_only, name=name)))


@token.command("list")
@click.argument("user", metavar="ACCESS_KEY")
@gateway_options
def list_tokens(user: str) -> None:
    """List a user's tokens, without their text."""
    tokens = run(lambda client: client.users.tokens(user))
    if options().json:
        output.print_json({"tokens": tokens})
    else:
        output.print_table(TOKEN, tokens)


@token.command("revoke")
@click.argument("user", metavar="ACCESS_KEY")
@click.argument("token_id")
@gateway_options
def revoke(user: str, token_id: str) -> None:
    """Void a token."""
    _print_token(run(lambda client: client.users.revoke_token(user, token_id)))


def _print_token(made: Record) -> None:
    if options().json:
        output.print_json({"token": made})
    else:
        output.print_record(made)


# --- scrub -------------------------------------------------------------------------------------


@cli.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--all", "everything", is_flag=True, help="Every image of the file stores.")
@gateway_options
def scrub(images: tuple[str, ...], everything: bool) -> None:
    """Have images read and hashed again, in the background. Shows what is under way, and which images are bad."""
    if images and everything:
        raise click.UsageError("Name images, or --all.")
    state = run(lambda client: _ask_for_scrub(client, images, everything=everything))
    if options().json:
        output.print_json({"scrub": state})
        return
    under_way = output.text(state["image"]) if state["image"] else "none"
    click.echo(f"under way: {under_way}, waiting: {state['waiting']}, bad: {len(state['bad'])}")
    if state["bad"]:
        output.print_table(BAD, state["bad"])


async def _ask_for_scrub(client: Client, images: tuple[str, ...], *, everything: bool) -> Record:
    if images or everything:
        return await client.scrub.ask(images or None)
    return await client.scrub.state()


# --- limits ------------------------------------------------------------------------------------


@cli.command()
@click.argument("rate", required=False, callback=byte_rate)
@gateway_options
def limit(rate: int | None) -> None:
    """Let all transfers together move RATE bytes per second at most, such as 100MiB, until the gateway's next start;
    none for no limit. Without RATE, show what holds.
    """
    now = run(lambda client: client.transfers.limit() if rate is None else client.transfers.set_limit(rate or None))
    if options().json:
        output.print_json({"limits": {"limit_bytes_per_s": now}})
    else:
        click.echo("no limit" if now is None else f"{output.byte_count(now)}/s")


# --- the master key ----------------------------------------------------------------------------


@cli.command("rotate-master")
@click.option("--data-dir", type=_PATH, help="The gateway's data directory.  [default: as visor-gateway]")
@click.option("--config", type=_PATH, help="The gateway's configuration file.")
@click.option("--master-key", type=_PATH, help="The master key file, if it is elsewhere.")
@click.option("--database", metavar="URL", help="The database, if it is elsewhere.")
@click.option("--json", "as_json", is_flag=True, help="Print for machines.")
def rotate_master(
    data_dir: Path | None, config: Path | None, master_key: Path | None, database: str | None, as_json: bool
) -> None:
    """Encrypt every secret anew under a new master key, in the gateway's own files. It may run on meanwhile."""
    from .master import rotate_master as rotate

    count, keys = rotate(data_dir, config=config, master_key=master_key, database=database)
    if as_json or options().json:
        output.print_json({"secrets": count, "master_key_file": str(keys)})
    else:
        click.echo(f"{count} secrets are encrypted under a new key in {output.text(keys)}")


# --- backup --------------------------------------------------------------------------------------


def _own_files(command: CommandT) -> CommandT:
    """Options that say whose files are meant."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print for machines."),
        click.option("--service", is_flag=True, help="The files of the systemd unit."),
        click.option("--config", type=_PATH, help="The gateway's configuration file."),
        click.option("--data-dir", type=_PATH, help="The gateway's data directory.  [default: as visor-gateway]"),
    ):
        command = option(command)
    return command


@cli.command()
@click.argument("target", type=_PATH, metavar="FILE|DIR")
@_own_files
def backup(target: Path, data_dir: Path | None, config: Path | None, service: bool, as_json: bool) -> None:
    """Write records, users and keys of the gateway's own files into FILE, or a new file in DIR. It may run on."""
    from .backup import make_backup

    file, manifest = make_backup(target.absolute(), *_files(data_dir, config, service))
    if as_json or options().json:
        output.print_json({"backup": {"file": str(file), **msgspec.to_builtins(manifest)}})
    else:
        size = output.byte_count(sum(member.size for member in manifest.members))
        click.echo(f"{output.text(file)}: {size}, with the keys to every secret: keep it where nobody else reads it")


@cli.command()
@click.argument("file", type=_PATH)
@_own_files
@click.option("--replace", is_flag=True, help="Put aside what is there.")
def restore(
    file: Path, data_dir: Path | None, config: Path | None, service: bool, as_json: bool, replace: bool
) -> None:
    """Put a backup back in place, while no gateway runs on it. All of it is checked first."""
    from .restore import restore_backup

    manifest, aside = restore_backup(file.absolute(), *_files(data_dir, config, service), replace=replace)
    if as_json or options().json:
        output.print_json({"restored": msgspec.to_builtins(manifest), "put_aside": [str(path) for path in aside]})
        return
    click.echo(f"restored the backup of {output.text(manifest.made_at)}, by version {output.text(manifest.version)}")
    for path in aside:
        click.echo(f"what was there is now {output.text(path)}")


def _files(data_dir: Path | None, config: Path | None, service: bool) -> tuple[DataDirectory, Settings]:
    from ..config import load
    from .identity import chosen, chosen_config, take_service_environ

    if service:
        take_service_environ()
    directory = chosen(data_dir, os.environ)
    return directory, load(chosen_config(config, os.environ), data_dir=directory.path, environ=os.environ)


cli.add_command(cache)
cli.add_command(import_glance)
cli.add_command(import_visor)
add_common_commands(cli, PROGRAM)


def main() -> None:
    """The console script."""
    cli(prog_name=PROGRAM)


if __name__ == "__main__":
    main()
