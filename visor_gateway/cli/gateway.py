"""`visor-gateway`: serve, prepare and check a configuration, and run the daemon in the background without systemd."""

from __future__ import annotations

from ..lean import structlog

# isort: split
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias, TypeVar

import click

from .. import __version__, log
from ..config import Settings, load, sample
from ..config.kinds import ADDRESSES, ROLES
from ..datadir import DataDirectory, default_data_dir
from ..errors import GatewayError
from . import background
from .background import BackgroundError
from .command import CONTEXT, add_common_commands

PROGRAM: Final = "visor-gateway"
#: How long `stop` waits: the default drain_timeout, and a little for what follows the drain.
STOP_TIMEOUT: Final = 3660.0
START_TIMEOUT: Final = 60.0
#: Longer than the daemon itself waits for the new process.
UPGRADE_TIMEOUT: Final = 360.0

_log: Final = structlog.get_logger("visor_gateway.cli")

Roles: TypeAlias = tuple[str, ...] | None

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class Failure(click.ClickException):
    """Ends the command with exit code 1 and one line on standard error."""

    def show(self, file: Any = None) -> None:
        click.echo(f"{PROGRAM}: {' '.join(self.message.split())}", file=file, err=file is None)


class Commands(click.Group):
    """Turns what a command may raise into one line on standard error and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (GatewayError, BackgroundError) as exc:
            raise Failure(str(exc)) from exc


def _absolute(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    return None if value is None else value.absolute()


def data_dir_option(command: CommandT) -> CommandT:
    """`--data-dir`, as the argument `directory`."""

    def directory(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> DataDirectory:
        return DataDirectory((value or default_data_dir(os.environ)).absolute())

    return click.option(
        "--data-dir",
        "directory",
        type=click.Path(file_okay=False, path_type=Path),
        callback=directory,
        help="Where the gateway keeps its data.  [default: $STATE_DIRECTORY, else $XDG_STATE_HOME/visor-gateway]",
    )(command)


def config_option(command: CommandT) -> CommandT:
    """`--config`, as the argument `config`."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        callback=_absolute,
        help="The configuration file.  [default: visor-gateway.toml in $CONFIGURATION_DIRECTORY, else none]",
    )(command)


def bind_option(command: CommandT) -> CommandT:
    """`--bind`, as the argument `bind`."""

    def addresses(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            try:
                ADDRESSES.parse([address])
            except ValueError as exc:
                raise click.BadParameter(f"expected HOST:PORT, not {address!r}") from exc
        return value

    return click.option(
        "--bind", multiple=True, metavar="HOST:PORT", callback=addresses, help="Address to listen on; may be repeated."
    )(command)


def role_option(command: CommandT) -> CommandT:
    """`--role`, as the argument `role`: names, or None for those of the configuration."""

    def names(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        found = tuple(word.strip() for word in value.split(","))
        try:
            ROLES.parse(found)
        except ValueError as exc:
            raise click.BadParameter(f"expected {ROLES.expected}, not {value!r}") from exc
        return found

    return click.option(
        "--role",
        metavar="NAME[,NAME]",
        callback=names,
        help="What to serve: image, meta, auth.  [default: server.roles, else image]",
    )(command)


json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Streaming gateway for virtual machine images."""


def main() -> NoReturn:
    """The console script."""
    cli(prog_name=PROGRAM)
    raise SystemExit(0)


# --- serving -------------------------------------------------------------------------------------


@cli.command()
@config_option
@data_dir_option
@bind_option
@role_option
def serve(config: Path | None, directory: DataDirectory, bind: tuple[str, ...], role: Roles) -> None:
    """Serve in the foreground until SIGTERM, which drains."""
    # Imported here: the other commands answer without loading the server.
    from ..succession import predecessor

    with predecessor() as older:
        settings = _settings(config, directory, bind, role)
        log.configure(settings.log.level, settings.log.format)
        from .. import daemon

        try:
            daemon.serve(
                settings,
                directory.path,
                reload=lambda: _settings(config, directory, bind, role),
                predecessor=older,
            )
        except GatewayError:
            raise
        except Exception as exc:
            # A bare traceback would pass the log by, and with it what hides secrets.
            _log.critical("the gateway ended by an unexpected error", exc_info=exc)
            raise Failure("ended by an unexpected error, see the log") from exc


def _settings(
    config: Path | None, directory: DataDirectory, bind: tuple[str, ...] = (), role: Roles = None
) -> Settings:
    overrides = {"server.bind": bind} if bind else {}
    if role is not None:
        overrides["server.roles"] = role
    return load(_found(config), data_dir=directory.path, environ=os.environ, overrides=overrides)


def _found(config: Path | None) -> Path | None:
    """The file that was named, else the one that the service's configuration directory holds."""
    if config is None and (place := os.environ.get("CONFIGURATION_DIRECTORY")):
        beside = Path(place.partition(":")[0], "visor-gateway.toml")
        return beside if beside.exists() else None
    return config


# --- configuration -------------------------------------------------------------------------------


@cli.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), required=False)
@config_option
@data_dir_option
def init(file: Path | None, config: Path | None, directory: DataDirectory) -> None:
    """Write a commented configuration to FILE (default visor-gateway.toml, - for standard output)."""
    if file and config:
        raise click.UsageError("FILE and --config name the same thing: give one of them.")
    target = file or config or Path("visor-gateway.toml")
    text = sample(directory.path)
    if str(target) == "-":
        click.echo(text, nl=False)
        return
    try:
        # Others may not read it: a secret may be written into it later.
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as written:
            written.write(text)
    except FileExistsError as exc:
        raise Failure(f"{target}: exists and is not overwritten") from exc
    except OSError as exc:
        raise Failure(f"{target}: can't be written: {exc.strerror}") from exc
    click.echo(f"{target}: written")


@cli.command("check-config")
@config_option
@data_dir_option
@bind_option
@role_option
@json_option
def check_config(
    config: Path | None, directory: DataDirectory, bind: tuple[str, ...], role: Roles, as_json: bool
) -> None:
    """Check the configuration as `serve` would read it, and show nothing secret of it."""
    settings = _settings(config, directory, bind, role)
    if as_json:
        click.echo(json.dumps({"data_dir": str(directory.path), "settings": settings.shown()}, indent=2))
    else:
        click.echo(f"{_found(config) or 'The configuration'}: valid")


@cli.command()
@click.option("--config", type=click.Path(path_type=Path), help="The configuration file.  [default: as serve]")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Where the gateway keeps its data.  [default: as serve]"
)
@click.option("--service", is_flag=True, help="Look at the directories of the systemd unit.")
@click.option("--strict", is_flag=True, help="Let warnings count as failures.")
@json_option
def doctor(config: Path | None, data_dir: Path | None, service: bool, strict: bool, as_json: bool) -> None:
    """Look at everything that the gateway depends on, and say what to do about what is found. A gateway may run
    meanwhile.
    """
    from .doctor import examination, finding
    from .identity import chosen, chosen_config, take_service_environ

    log.configure("error", "text")
    if service:
        take_service_environ()
    environ = dict(os.environ)
    found = examination.examine(chosen(data_dir, environ), chosen_config(config, environ), environ, is_service=service)
    click.echo(json.dumps(finding.as_json(found), indent=2) if as_json else "\n".join(finding.as_lines(found)))
    bad = {finding.Level.FAILED, *([finding.Level.WARNING] if strict else [])}
    count = sum(each.level in bad for each in found)
    if count:
        raise Failure(f"{count} finding{'s' if count > 1 else ''} to act on")


# --- in the background ---------------------------------------------------------------------------


def _refuse_under_systemd() -> None:
    if background.unit_is_active():
        raise Failure(f"systemd runs the unit {background.UNIT}: nothing was changed, use systemctl")


@cli.command()
@config_option
@data_dir_option
@bind_option
@role_option
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=START_TIMEOUT, show_default=True, help="Seconds to wait."
)
def start(config: Path | None, directory: DataDirectory, bind: tuple[str, ...], role: Roles, timeout: float) -> None:
    """Serve in the background, and wait until the daemon is ready."""
    _refuse_under_systemd()
    _start(config, directory, bind, role, timeout)


def _start(config: Path | None, directory: DataDirectory, bind: tuple[str, ...], role: Roles, timeout: float) -> None:
    _settings(config, directory, bind, role)
    options = [*(("--config", str(config)) if config else ()), *(word for each in bind for word in ("--bind", each))]
    options += ["--role", ",".join(role)] if role is not None else []
    pid, status = background.start(directory, options, timeout=timeout)
    click.echo(f"{PROGRAM} is ready as process {pid}" + (f": {status}" if status else ""))


@cli.command()
@data_dir_option
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=STOP_TIMEOUT, show_default=True, help="Seconds to wait."
)
@click.option("--cut", is_flag=True, help="Cut transfers that are under way instead of waiting for them.")
def stop(directory: DataDirectory, timeout: float, cut: bool) -> None:
    """End the daemon in the background: it drains, then exits."""
    _refuse_under_systemd()
    _stop(directory, timeout, cut=cut)


def _stop(directory: DataDirectory, timeout: float, *, cut: bool) -> None:
    pid = background.stop(directory, timeout=timeout, cut=cut)
    click.echo(f"{PROGRAM} is not running" if pid is None else f"{PROGRAM} has ended, it was process {pid}")


@cli.command()
@config_option
@data_dir_option
@bind_option
@role_option
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=STOP_TIMEOUT, show_default=True, help="Seconds to wait."
)
def restart(config: Path | None, directory: DataDirectory, bind: tuple[str, ...], role: Roles, timeout: float) -> None:
    """`stop`, then `start`. The configuration is checked first."""
    _refuse_under_systemd()
    _settings(config, directory, bind, role)
    _stop(directory, timeout, cut=False)
    _start(config, directory, bind, role, START_TIMEOUT)


@cli.command()
@data_dir_option
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=UPGRADE_TIMEOUT, show_default=True, help="Seconds to wait."
)
def upgrade(directory: DataDirectory, timeout: float) -> None:
    """Have a new process of the installed version take over from the running one, which finishes its transfers."""
    pid, version = background.upgrade(directory, timeout=timeout)
    click.echo(f"{PROGRAM} {version} has taken over as process {pid}")


@cli.command()
@data_dir_option
@json_option
def status(directory: DataDirectory, as_json: bool) -> None:
    """Tell whether the daemon runs: exit code 0 if it does, 1 if not."""
    state = background.state(directory)
    if as_json:
        click.echo(json.dumps(state))
    elif state["systemd"]:
        click.echo(f"{PROGRAM} is run by systemd as the unit {background.UNIT}")
    elif state["running"]:
        click.echo(f"{PROGRAM} is running as process {state['pid']}")
    if not state["running"]:
        raise Failure(f"not running on {directory.path}")


@cli.command()
@data_dir_option
def clean(directory: DataDirectory) -> None:
    """Remove the logs of `start`. Images and records stay; nothing is done while the daemon runs."""
    _refuse_under_systemd()
    removed = background.clean(directory)
    click.echo("\n".join(f"{path}: removed" for path in removed) or "Nothing to remove")


add_common_commands(cli, PROGRAM)
