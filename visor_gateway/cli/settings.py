"""Which gateway a command talks to, and as whom (docs/cli.md).

In this order: options, `VISOR_URL` and its like, the file of `--credentials` or `VISOR_CREDENTIALS`, and the files
that are found by themselves: the user's credentials.toml, and the admin.toml of a gateway on this host. Keys from a
file that was only found go to no other gateway than the one it names: a signature is of use to whoever receives it.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

if TYPE_CHECKING:
    from ..client.credentials import Credentials, CredentialsFile

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 4568
SYSTEM_FILE: Final = Path("/var/lib/visor-gateway/admin.toml")
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class Options(msgspec.Struct):
    """What the command line says. None where it says nothing."""

    url: str | None = None
    host: str | None = None
    port: int | None = None
    access_key: str | None = None
    secret_key: str | None = None
    token: str | None = None
    credentials: Path | None = None
    ca_file: Path | None = None
    json: bool = False
    verbose: bool = False


class Gateway(msgspec.Struct, frozen=True):
    """A gateway to talk to.

    Attributes:
        withheld: A file whose keys were not used, because they are for another gateway.
    """

    url: str
    credentials: Credentials | None
    ca_file: Path | None = None
    withheld: Path | None = None


def find_gateway(options: Options, environ: Mapping[str, str]) -> Gateway:
    """Raises `CredentialsInvalid` where a file that was named can't be used, or half a pair of keys is missing."""
    named = options.credentials or (Path(environ["VISOR_CREDENTIALS"]) if environ.get("VISOR_CREDENTIALS") else None)
    files = [_read_named(named)] if named else _found_files(environ)
    url = _said_url(options, environ) or next((file.url for file in files if file.url), None) or _url(None, None)
    credentials, withheld = _said_credentials(options, environ), None
    for file in files:
        if credentials is None and file.credentials is not None:
            if named or file.url is None or same_gateway(file.url, url):
                credentials = file.credentials
            else:
                withheld = withheld or file.path
    ca_file = options.ca_file or (Path(environ["VISOR_CA_FILE"]) if environ.get("VISOR_CA_FILE") else None)
    return Gateway(url, credentials, ca_file, withheld if credentials is None else None)


def same_gateway(one: str, other: str) -> bool:
    """Whether two URLs are of one gateway. The names of the loopback interface are alike."""
    return _address(one) == _address(other)


def _address(url: str) -> tuple[str, str, int | None]:
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        return (
            parts.scheme,
            "loopback" if host in _LOOPBACK else host,
            parts.port or {"http": 80}.get(parts.scheme, 443),
        )
    except ValueError:
        return url, "", None


def _said_url(options: Options, environ: Mapping[str, str]) -> str | None:
    if options.url:
        return options.url
    if options.host or options.port:
        return _url(options.host, options.port)
    return environ.get("VISOR_URL") or None


def _url(host: str | None, port: int | None) -> str:
    host = host or DEFAULT_HOST
    scheme, mark, rest = host.rpartition("://")
    bare = f"[{rest}]" if ":" in rest and not mark and not rest.startswith("[") else rest
    return f"{scheme or 'http'}://{bare}:{port or DEFAULT_PORT}"


def _said_credentials(options: Options, environ: Mapping[str, str]) -> Credentials | None:
    from ..client import credentials

    access_key = options.access_key or environ.get("VISOR_ACCESS_KEY")
    secret_key = options.secret_key or environ.get("VISOR_SECRET_KEY")
    if options.token:
        return credentials.Token(options.token)
    token = None if options.access_key or options.secret_key else environ.get("VISOR_TOKEN")
    return credentials.choose(access_key, secret_key, token, source="Options and environment")


def _read_named(path: Path) -> CredentialsFile:
    from ..client import credentials
    from ..client.errors import CredentialsInvalid

    try:
        return credentials.read(path)
    except (FileNotFoundError, PermissionError) as exc:
        raise CredentialsInvalid(f"{path}: {exc.strerror}") from exc


def _found_files(environ: Mapping[str, str]) -> list[CredentialsFile]:
    """Files that are there and may be read. One that is there and broken is an error: silence would hide it."""
    from ..client import credentials

    found = []
    for path in candidates(environ):
        try:
            found.append(credentials.read(path))
        except OSError as exc:
            if exc.errno not in {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR}:
                raise
    return found


def candidates(environ: Mapping[str, str]) -> list[Path]:
    """Where credentials are looked for, the first one first."""
    home = Path(environ.get("HOME") or Path.home())
    return [
        _xdg(environ, "XDG_CONFIG_HOME", home / ".config") / "visor" / "credentials.toml",
        _xdg(environ, "XDG_STATE_HOME", home / ".local" / "state") / "visor-gateway" / "admin.toml",
        SYSTEM_FILE,
    ]


def _xdg(environ: Mapping[str, str], name: str, default: Path) -> Path:
    """XDG Base Directory Specification: a relative path is to be ignored."""
    value = environ.get(name, "")
    return Path(value) if value.startswith("/") else default
