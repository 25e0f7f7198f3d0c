"""What the client commands have in common: options, `key=value` words, and how a command ends.

A command ends with 0, with 1 and one line on standard error, or with 2 where it was called wrongly. Nobody sees a
traceback who has not asked for it with `-v`.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import parse_qsl

import click
from click.shell_completion import get_completion_class

from .settings import Gateway, Options, find_gateway

if TYPE_CHECKING:
    from ..client import Client

T = TypeVar("T")
CommandT = TypeVar("CommandT", bound=Callable[..., Any])
CONTEXT: Final = {"help_option_names": ["-h", "--help"]}


class Failure(click.ClickException):
    """Ends the command with exit code 1 and one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
        self._program = click.get_current_context().find_root().info_name

    def show(self, file: Any = None) -> None:
        click.echo(f"{self._program}: {self.message}", file=file, err=file is None)


class Commands(click.Group):
    """Turns whatever a command raises into its end."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.ensure_object(Options)
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except (Exception, KeyboardInterrupt, BaseExceptionGroup) as exc:
            if ctx.obj.verbose:
                traceback.print_exc()
            raise _failure(exc) from exc


class Interrupted(Failure):
    """SIGINT ended the command."""

    exit_code = 130  # as shells tell of it


def _failure(exc: BaseException) -> BaseException:
    """What ends the command for `exc`. Its text is shown where it is made for people, else only its kind."""
    from ..client.errors import VisorError
    from ..errors import GatewayError

    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    if isinstance(exc, KeyboardInterrupt):
        return Interrupted("interrupted")
    if isinstance(exc, (VisorError, GatewayError)):
        return Failure(exc.message)
    if isinstance(exc, OSError) and exc.strerror:
        return Failure(f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror)
    if isinstance(exc, Exception):
        return Failure(f"unexpected error ({type(exc).__name__}), -v shows where")
    return exc


def _keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Options may stand before the command or after it; the later ones win."""
    options = ctx.find_root().ensure_object(Options)
    if value is not None and value is not False and parameter.name is not None:
        setattr(options, parameter.name, value)


_PATH: Final = click.Path(path_type=Path)
_OPTIONS: Final[tuple[tuple[tuple[str, ...], dict[str, Any]], ...]] = (
    (("--url",), {"help": "URL of the gateway, in place of -a and -p.  [env: VISOR_URL]"}),
    (("--address", "-a", "host"), {"metavar": "HOST", "help": "Host of the gateway.  [default: 127.0.0.1]"}),
    (("--port", "-p"), {"type": click.IntRange(1, 65535), "help": "Port of the gateway.  [default: 4568]"}),
    (("--access-key",), {"help": "Access key.  [env: VISOR_ACCESS_KEY]"}),
    (("--secret-key",), {"help": "Secret key; users of this host can see it.  [env: VISOR_SECRET_KEY]"}),
    (("--token",), {"help": "Bearer token in place of keys.  [env: VISOR_TOKEN]"}),
    (("--credentials",), {"type": _PATH, "help": "File with url and keys.  [env: VISOR_CREDENTIALS]"}),
    (("--ca-file",), {"type": _PATH, "help": "Certificates to trust for https.  [env: VISOR_CA_FILE]"}),
    (("--json",), {"is_flag": True, "help": "Print for machines."}),
    (("--verbose", "-v"), {"is_flag": True, "help": "Show where an error comes from."}),
)


def gateway_options(command: CommandT) -> CommandT:
    """Options that every client command takes. They are kept in the root context's `Options`."""
    for names, settings in reversed(_OPTIONS):
        command = click.option(*names, callback=_keep, expose_value=False, **settings)(command)
    return command


def options() -> Options:
    """What the running command was told."""
    return click.get_current_context().find_root().ensure_object(Options)


def run(work: Callable[[Client], Awaitable[T]]) -> T:
    """Do `work` with a client of the gateway that the options and their like name."""
    import anyio

    from ..client.errors import Forbidden

    gateway = find_gateway(options(), os.environ)

    async def connected() -> T:
        async with _client(gateway) as client:
            return await work(client)

    try:
        return anyio.run(connected, backend="trio")
    except Forbidden as exc:
        if gateway.withheld is None:
            raise
        raise Failure(f"{exc.message} (the keys in {gateway.withheld} are for another gateway)") from exc


def _client(gateway: Gateway) -> Client:
    from ..client import Client

    tls = None
    if gateway.ca_file is not None:
        import ssl

        tls = ssl.create_default_context(cafile=gateway.ca_file)
    return Client(gateway.url, gateway.credentials, tls=tls)


def word(value: str) -> tuple[str, str]:
    """`key=value` as a pair. Raises `click.BadParameter` where it is none."""
    key, mark, text = value.partition("=")
    if not mark or not key.strip():
        raise click.BadParameter(f"'{value}' is not of the form key=value")
    return key.strip().lower(), text


def words(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Callback of an argument of `key=value` words."""
    pairs = [word(value) for value in values]
    if len(dict(pairs)) < len(pairs):
        raise click.BadParameter("a key is given twice")
    return dict(pairs)


def query(ctx: click.Context, parameter: click.Parameter, value: str) -> list[tuple[str, str]]:
    """Callback of an option of the form `a=b&c=d`."""
    try:
        return parse_qsl(value, keep_blank_values=True, strict_parsing=bool(value))
    except ValueError as exc:
        raise click.BadParameter(f"'{value}' is not of the form a=b&c=d") from exc


def byte_rate(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Callback of a rate in bytes per second, such as `10MiB`; `none`, and 0, for no limit."""
    if value is None:
        return None
    from ..config import kinds

    kind = kinds.size(zero=True)
    try:
        return 0 if value == "none" else int(str(kind.parse(value)))
    except ValueError as exc:
        raise click.BadParameter(f"'{value}' is not {kind.expected}, or none") from exc


def add_common_commands(group: click.Group, program: str) -> None:
    """`help` and `completion`."""

    @group.command("help")
    @click.argument("command", required=False)
    @click.pass_context
    def show_help(ctx: click.Context, command: str | None) -> None:
        """Show help, or that of COMMAND."""
        root = ctx.find_root()
        if command is None:
            click.echo(group.get_help(root))
            return
        found = group.get_command(root, command)
        if found is None:
            raise click.UsageError(f"No such command '{command}'.", root)
        click.echo(found.get_help(click.Context(found, info_name=command, parent=root)))

    @group.command()
    @click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
    def completion(shell: str) -> None:
        """Print the completion script of SHELL, to be sourced by it."""
        made = get_completion_class(shell)
        if made is None:
            raise Failure(f"no completion for {shell}")
        variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
        click.echo(made(group, {}, program, variable).source())
