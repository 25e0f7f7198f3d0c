"""What a setting's value may be: how it is checked, how it reads as the text of an environment variable, and how
a message names what was expected. Sans-IO.
"""

from __future__ import annotations

import hmac
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

import msgspec

Network: TypeAlias = IPv4Network | IPv6Network

_UNITS: Final = {
    "": 1,
    **{letter: 1000**power for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}I": 1024**power for power, letter in enumerate("KMGT", start=1)},
}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\Z")
_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\Z"
)
_HDFS_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*\$?\Z")  # what WebHDFS takes by default
#: Of a key that is not made by the gateway: fewer characters could be guessed.
SHARED_KEY_LENGTH: Final = 24
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_DEFAULT_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}
_FLAGS: Final[Mapping[str, bool]] = {
    "true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip


class Secret:
    """Text that no log, message or listing shows. `reveal` gives it to the code that needs it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._text))


class Kind(msgspec.Struct, frozen=True):
    """One kind of value.

    Attributes:
        expected: What a message says was expected.
        parse: Turns a TOML value into the setting's value; raises ValueError where it can't be one.
        from_text: Turns the text of an environment variable into a TOML value; raises ValueError.
        secret: Whether a message must not show the value.
    """

    expected: str
    parse: Callable[[object], object]
    from_text: Callable[[str], object] = str
    secret: bool = False


# --- one value -----------------------------------------------------------------------------------


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError  # ruff: ignore[type-check-without-type-error] - `parse` has one way to refuse
    return value


def _flag_from_text(text: str) -> bool:
    try:
        return _FLAGS[text.strip().lower()]
    except KeyError:
        raise ValueError from None


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return value


def _path(value: object) -> Path:
    return Path(_text(value)).expanduser()


def _size(value: object) -> int:
    if isinstance(value, str):
        found = _SIZE.match(value.strip().upper())
        if found is None:
            raise ValueError
        value = round(float(found[1]) * _UNITS[found[2]]) if "." in found[1] else int(found[1]) * _UNITS[found[2]]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError
    return value


def _host(text: str) -> str:
    """A host name or an address without brackets, in lower case."""
    text = text.lower()
    if ":" in text or text.replace(".", "").isdigit():
        return str(ip_address(text))
    if not _HOST_NAME.match(text):
        raise ValueError
    return text


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 65535:
        raise ValueError
    return int(text)


def split_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[ADDRESS]:PORT` as host (without brackets) and port (0: any free one).

    Raises:
        ValueError: It is neither.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        return str(ip_address(host[1:-1])), _port(port)
    if not colon or ":" in host:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return _host(host), _port(port)


def _address(value: object) -> str:
    text = _text(value)
    if not text.startswith("unix:/"):
        split_address(text)
    return text


def _exempt_host(value: object) -> str:
    """`host` or `host:port`; an IPv6 address with brackets where a port follows."""
    text = _text(value).lower()
    if text.startswith("[") and text.endswith("]"):
        return str(ip_address(text[1:-1]))
    if ":" in text and (text.startswith("[") or text.count(":") == 1):
        host, port = split_address(text)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return _host(text)


def _network(value: object) -> Network:
    return ip_network(_text(value))


def _web_url(value: object) -> SplitResult:
    parts = urlsplit(_text(value))
    bare = not (parts.query or parts.fragment or "@" in parts.netloc or " " in parts.netloc)
    if parts.scheme not in ("http", "https") or not parts.hostname or not bare or parts.port == 0:
        raise ValueError
    _host(parts.hostname)
    return parts


def _endpoint(value: object) -> str:
    return _web_url(value).geturl().rstrip("/")


def _endpoints(value: object) -> tuple[str, ...]:
    """One URL, several with commas between, or a list of them."""
    given = value if isinstance(value, list | tuple) else [word.strip() for word in _text(value).split(",")]
    urls = tuple(_endpoint(url) for url in given)
    if not urls or len(set(urls)) != len(urls):
        raise ValueError
    return urls


def _hdfs_directory(value: object) -> str:
    path = _text(value)
    parts = path.strip("/").split("/")
    if not path.startswith("/") or any(part in {"", ".", ".."} or ":" in part for part in parts):
        raise ValueError
    return "/" + "/".join(parts)


def _hdfs_user(value: object) -> str:
    if not _HDFS_USER.match(name := _text(value)):
        raise ValueError
    return name


def _name(value: object) -> str:
    if not _NAME.match(name := _text(value)):
        raise ValueError
    return name


def _origin(value: object) -> str:
    """Scheme, host and port as a browser writes an origin: lower case, without a default port (RFC 6454, 6.2)."""
    parts = _web_url(value)
    if parts.path.strip("/") or parts.hostname is None:
        raise ValueError
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = "" if parts.port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


def _secret(value: object) -> Secret:
    return Secret(_text(value))


def _shared_key(value: object) -> Secret:
    if not (text := _text(value)).isascii() or len(text) < SHARED_KEY_LENGTH or " " in text:
        raise ValueError
    return Secret(text)


def _database(value: object) -> Secret:
    url = _text(value)
    if not re.match(r"sqlite:///.|postgresql(\+psycopg)?://.|visor\+https?://.", url):
        raise ValueError
    return Secret(url)


def _auth_server(value: object) -> Secret:
    url = _text(value)
    if not re.fullmatch(r"visor\+https?://(:[^@/\s]+@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?/?", url):
        raise ValueError
    return Secret(url)


# --- kinds ---------------------------------------------------------------------------------------


def _number_from_text(text: str) -> object:
    number = float(text)
    return int(number) if number.is_integer() else number


def whole(minimum: int, maximum: int | None = None) -> Kind:
    """A whole number of at least `minimum`, and at most `maximum`."""

    def parse(value: object) -> int:
        number = _number(value)
        if not isinstance(number, int) or number < minimum or (maximum is not None and number > maximum):
            raise ValueError
        return number

    bounds = f"at least {minimum}" if maximum is None else f"{minimum} to {maximum}"
    return Kind(f"a whole number, {bounds}", parse, _number_from_text)


def seconds(*, zero: bool) -> Kind:
    """A duration in seconds; 0 only where `zero` says so."""

    def parse(value: object) -> float:
        number = float(_number(value))
        if number < 0 or (number == 0 and not zero):
            raise ValueError
        return number

    return Kind(f"seconds, {'0 or more' if zero else 'more than 0'}", parse, _number_from_text)


def percent() -> Kind:
    """A whole number from 0 to 100."""

    def parse(value: object) -> int:
        number = _number(value)
        if not isinstance(number, int) or not 0 <= number <= 100:
            raise ValueError
        return number

    return Kind("a whole number from 0 to 100", parse, _number_from_text)


def size(*, zero: bool) -> Kind:
    """A number of bytes, also written like "10 GiB"; 0 only where `zero` says so."""

    def parse(value: object) -> int:
        if (number := _size(value)) == 0 and not zero:
            raise ValueError
        return number

    return Kind(f'bytes such as 4096 or "10 GiB"{"" if zero else ", more than 0"}', parse)


def choice(*options: str) -> Kind:
    """One of a closed list of words."""

    def parse(value: object) -> str:
        if value not in options:
            raise ValueError
        return str(value)

    return Kind(f"one of {', '.join(options)}", parse)


def _list_from_text(text: str) -> list[object]:
    """A TOML (or JSON) array, or words with commas between."""
    if not text.lstrip().startswith("["):
        return [word.strip() for word in text.split(",") if word.strip()]
    try:
        (value,) = tomllib.loads(f"value = {text}").values()
    except tomllib.TOMLDecodeError:
        # `[::1]:4568` begins like an array and is none.
        return [word.strip() for word in text.split(",")]
    return list(value) if isinstance(value, list) else [value]


def several(expected: str, parse_one: Callable[[object], object], *, empty: bool = True) -> Kind:
    """A list without duplicates."""

    def parse(value: object) -> tuple[object, ...]:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ValueError  # ruff: ignore[type-check-without-type-error] - `parse` has one way to refuse
        items = tuple(parse_one(item) for item in value)
        if len(set(items)) != len(items) or not (items or empty):
            raise ValueError
        return items

    return Kind(f"a list of {expected}, each once{'' if empty else ', at least one'}", parse, _list_from_text)


TEXT: Final = Kind("text", _text)
FLAG: Final = Kind("true or false", _flag, _flag_from_text)
PATH: Final = Kind("a path", _path)
ENDPOINT: Final = Kind("a URL http(s)://HOST[:PORT][/PATH] without credentials", _endpoint)
ENDPOINTS: Final = Kind(
    "a URL http(s)://HOST[:PORT] without credentials, or a list of such, each once", _endpoints, _list_from_text
)
HDFS_DIRECTORY: Final = Kind("an absolute path below /, without . and ..", _hdfs_directory)
HDFS_USER: Final = Kind("a name of letters, digits, dots, - and _", _hdfs_user)
NAME: Final = Kind("a name of up to 64 letters, digits, dots, - and _", _name)
ORIGIN: Final = Kind("a URL http(s)://HOST[:PORT] without a path", _origin)
SECRET: Final = Kind("text", _secret, secret=True)
SHARED_KEY: Final = Kind(f"{SHARED_KEY_LENGTH} or more ASCII characters without blanks", _shared_key, secret=True)
ROLES: Final = several("image, meta, auth", choice("image", "meta", "auth").parse, empty=False)
DATABASE: Final = Kind(
    "sqlite:///PATH, postgresql://USER:PASSWORD@HOST/NAME or visor+http://HOST:PORT", _database, secret=True
)
AUTH_SERVER: Final = Kind("visor+http://HOST:PORT or visor+https://:KEY@HOST:PORT", _auth_server, secret=True)
ADDRESSES: Final = several("HOST:PORT or unix:/PATH", _address, empty=False)
NETWORKS: Final = several("addresses or networks such as 10.0.0.0/8", _network)
ORIGINS: Final = several("origins http(s)://HOST[:PORT]", _origin)
SCHEMES: Final = several("http, https", choice("http", "https").parse)
HOSTS: Final = several("host or host:port", _exempt_host)
