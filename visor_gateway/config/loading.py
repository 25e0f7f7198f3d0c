"""Where settings come from, the later over the earlier: defaults, the configuration file, systemd credentials, the
environment, the command line.

Each source is read into the same flat form, `section.key` (`stores.name.key`) with the place it stands at. Then the
settings are built from what is left on top, so that a message can always name the place that is wrong.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from ..errors import ConfigError
from .kinds import Kind
from .settings import (
    SECRET_KEYS,
    SECTIONS,
    STORE_TYPES,
    Declared,
    FileStore,
    PeerServer,
    Section,
    Settings,
    Stores,
    StoreSettings,
)

ENVIRONMENT_PREFIX: Final = "VISOR_GATEWAY__"
SECRET_FILE_LIMIT: Final = 64 * 1024  # bytes: a larger file is not a secret but a mistake
_OF_ALL_STORES: Final = tuple(declared.key for declared in Stores.declared())
#: Keys of `[stores]` itself, and names that records refer to by another name (`image.STORE_ALIASES`).
RESERVED_STORES: Final = frozenset({*_OF_ALL_STORES, "lcs"})
#: Credentials that are files to a setting, which names their place.
_FILE_CREDENTIALS: Final = {
    "master.key": "auth.master_key_file",
    "server.tls_certificate": "server.tls_certificate",
    "server.tls_key": "server.tls_key",
    "meta_server.tls_certificate": "meta_server.tls_certificate",
    "meta_server.tls_key": "meta_server.tls_key",
    "auth_server.tls_certificate": "auth_server.tls_certificate",
    "auth_server.tls_key": "auth_server.tls_key",
}
_STORE_NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*\Z")

SectionT = TypeVar("SectionT", bound=Section)


class Given(msgspec.Struct, frozen=True):
    """A value as it was given.

    Attributes:
        where: The place, as a message names it: file and key, or environment variable.
        base: The directory that a relative path is relative to.
        as_text: Whether the value is text that has yet to be read as the kind of the setting.
    """

    value: object
    where: str
    base: Path
    as_text: bool = False


Layer = dict[str, Given]


def load(
    path: Path | None,
    *,
    data_dir: Path,
    environ: Mapping[str, str],
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """Read and check all settings.

    Args:
        path: The configuration file; None for none.
        data_dir: The data directory, absolute: the default place of what the gateway keeps.
        environ: The environment.
        overrides: What the command line names, such as `{"server.bind": [...]}`.

    Raises:
        ConfigError: A file can't be read, a key is unknown, or a value is not what it must be.
    """
    given = located(data_dir, environ)
    for layer in (
        _from_file(path),
        _from_credentials(environ),
        _from_environment(environ),
        {key: Given(value, f"command line: {key}", Path.cwd()) for key, value in (overrides or {}).items()},
    ):
        given |= _with_secrets_read(layer)
    _refuse_unknown_sections(given)
    source = str(path or "configuration")
    sections: dict[str, Any] = {
        name: _stores(given, source) if cls is Stores else _section(cls, name, given, source)
        for name, cls in SECTIONS.items()
    }
    settings = Settings(**sections)
    _check_together(settings, given, source)
    return settings


# --- sources -------------------------------------------------------------------------------------


def located(data_dir: Path, environ: Mapping[str, str]) -> Layer:
    """The defaults that depend on the data directory, and on the directories that systemd made for the service."""
    cache = environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    places: dict[str, object] = {
        "metadata.url": f"sqlite:///{data_dir / 'visor.sqlite3'}",
        "cache.directory": cache or str(data_dir / "cache"),
        "stores.file.directory": str(data_dir / "images"),
        "stores.http.type": "http",
    }
    return {key: Given(value, f"default: {key}", data_dir) for key, value in places.items()}


def _from_file(path: Path | None) -> Layer:
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as exc:
        raise ConfigError(f"{path}: expected a readable configuration file: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        reason = "not UTF-8 text" if isinstance(exc, UnicodeDecodeError) else str(exc)
        raise ConfigError(f"{path}: expected TOML: {_one_line(reason)}") from exc
    return {
        key: Given(value, f"{path}: {key}", path.absolute().parent) for key, value in _flattened(document, str(path))
    }


def _flattened(document: Mapping[str, Any], source: str) -> Iterator[tuple[str, object]]:
    for section, table in document.items():
        if section not in SECTIONS:
            raise ConfigError(f"{source}: {section}: no such section, expected one of {', '.join(SECTIONS)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{source}: {section}: expected a table")
        for key, value in table.items():
            if section != "stores" or key in _OF_ALL_STORES:
                yield f"{section}.{key}", value
            elif isinstance(value, dict):
                # A table without keys still says that the store is there.
                yield f"stores.{key}.type", value.get("type", key)
                yield from ((f"stores.{key}.{name}", setting) for name, setting in value.items())
            else:
                expected = ", ".join(_OF_ALL_STORES)
                raise ConfigError(f"{source}: stores.{key}: expected {expected}, or a table that describes a store")


def _from_environment(environ: Mapping[str, str]) -> Layer:
    return {
        variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."): Given(
            text, f"environment variable {variable}", Path.cwd(), as_text=True
        )
        for variable, text in environ.items()
        if variable.startswith(ENVIRONMENT_PREFIX)
    }


def _from_credentials(environ: Mapping[str, str]) -> Layer:
    """What systemd passes in files named like the keys; files of other names are not ours to judge."""
    if not (place := environ.get("CREDENTIALS_DIRECTORY")):
        return {}
    directory = Path(place)
    try:
        files = {file.name: file for file in directory.iterdir()}
    except OSError as exc:
        raise ConfigError(f"{directory}: expected the directory of systemd credentials: {exc.strerror}") from exc
    layer = {
        f"{name}_file": Given(str(file), f"credential {name}", directory)
        for name, file in files.items()
        if _is_secret(name)
    }
    for name, key in _FILE_CREDENTIALS.items():
        if (file := files.get(name)) is not None:
            layer[key] = Given(str(file), f"credential {name}", directory)
    return layer


def _is_secret(key: str) -> bool:
    section, _, rest = key.partition(".")
    depth = {"metadata": 0, "accounts": 0, "meta_server": 0, "auth_server": 0, "stores": 1}.get(section)
    return depth is not None and rest.count(".") == depth and rest.rpartition(".")[2] in SECRET_KEYS


def _with_secrets_read(layer: Layer) -> Layer:
    """The layer with each `<key>_file` of a secret in place as the key itself."""
    read = dict(layer)
    for key, given in layer.items():
        secret = key.removesuffix("_file")
        if secret == key or not _is_secret(secret):
            continue
        if secret in layer:
            raise ConfigError(f"{given.where}: expected only one of {secret} and {key}")
        del read[key]
        read[secret] = Given(_secret_from(given), given.where, given.base)
    return read


def _secret_from(given: Given) -> str:
    if not isinstance(given.value, str) or not given.value or "\0" in given.value:
        raise ConfigError(f"{given.where}: expected a path")
    path = given.base / Path(given.value).expanduser()
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_FILE_LIMIT + 1)
        text = content.decode().rstrip("\r\n")
    except OSError as exc:
        raise ConfigError(f"{given.where}: expected a readable file at {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{given.where}: expected UTF-8 text in {path}") from exc
    if not text or len(content) > SECRET_FILE_LIMIT:
        raise ConfigError(f"{given.where}: expected a secret in {path}, which is {'empty' if not text else 'too long'}")
    return text


# --- building ------------------------------------------------------------------------------------


def _refuse_unknown_sections(given: Layer) -> None:
    for key, value in given.items():
        section, _, name = key.partition(".")
        if section not in SECTIONS or not name:
            raise ConfigError(f"{value.where}: no such setting, expected a key of one of {', '.join(SECTIONS)}")


def _section(cls: type[SectionT], prefix: str, given: Layer, source: str, **further: object) -> SectionT:
    """Build one section from the keys under `prefix`."""
    known = {declared.key: declared for declared in cls.declared()}
    keys = _under(prefix, given)
    for key, value in keys.items():
        if key not in known and key not in further:
            expected = ", ".join(known) or "no settings"
            raise ConfigError(f"{value.where}: no such key in [{prefix}], expected one of: {expected}")
    values = {key: _value(declared, prefix, keys.get(key), source) for key, declared in known.items()}
    return cls(**{name: value for name, value in values.items() if value is not msgspec.UNSET})


def _under(prefix: str, given: Layer) -> Layer:
    return {key.removeprefix(f"{prefix}."): value for key, value in given.items() if key.startswith(f"{prefix}.")}


def _value(declared: Declared, prefix: str, given: Given | None, source: str) -> object:
    if given is not None:
        return parsed(declared.kind, given)
    if declared.default is not msgspec.NODEFAULT:
        return declared.default
    raise ConfigError(f"{source}: {prefix}.{declared.key}: missing, expected {declared.kind.expected}")


def parsed(kind: Kind, given: Given) -> object:
    """The value as its kind has it.

    Raises:
        ConfigError: It is not of that kind.
    """
    try:
        value = kind.parse(kind.from_text(str(given.value)) if given.as_text else given.value)
    except (ValueError, OverflowError) as exc:
        shown = "" if kind.secret else f", not {_one_line(repr(given.value))}"
        raise ConfigError(f"{given.where}: expected {kind.expected}{shown}") from (None if kind.secret else exc)
    return given.base / value if isinstance(value, Path) else value


def _one_line(text: str) -> str:
    line = re.sub(r"://[^/\s]*@", "://***@", " ".join(text.split()))
    return line if len(line) <= 120 else f"{line[:117]}..."


def _stores(given: Layer, source: str) -> Stores:
    keys, tables = _store_tables(given)
    named = {name: _store(name, table, source) for name, table in tables.items()}
    of_all = {
        declared.key: _value(declared, "stores", keys.get(declared.key), source) for declared in Stores.declared()
    }
    stores = Stores(named=named, **of_all)  # type: ignore[arg-type]
    if stores.default not in named:
        where = keys["default"].where if "default" in keys else source
        raise ConfigError(f"{where}: expected one of the configured stores {', '.join(named)}, not '{stores.default}'")
    _refuse_shared_directories(named, source)
    return stores


def _store_tables(given: Layer) -> tuple[Layer, dict[str, Layer]]:
    """The keys of `[stores]` itself, and of the table of each store."""
    keys = _under("stores", given)
    tables: dict[str, Layer] = {}
    for key, value in keys.items():
        name, dot, setting = key.partition(".")
        if dot:
            tables.setdefault(name, {})[f"stores.{name}.{setting}"] = value
        elif name not in _OF_ALL_STORES:
            expected = ", ".join(f"stores.{key}" for key in _OF_ALL_STORES)
            raise ConfigError(f"{value.where}: expected {expected} or stores.NAME.KEY")
    return keys, tables


def _store(name: str, table: Layer, source: str) -> StoreSettings:
    prefix = f"stores.{name}"
    anywhere = next(iter(table.values())).where
    if name in RESERVED_STORES or not _STORE_NAME.match(name):
        raise ConfigError(f"{anywhere}: expected a store name of lower-case letters, digits and single _, not '{name}'")
    given = table.get(f"{prefix}.type", Given(name, anywhere, Path()))
    expected = (name,) if name in STORE_TYPES else tuple(STORE_TYPES)
    if given.value not in expected:
        raise ConfigError(
            f"{given.where}: expected a type for the store '{name}', one of {', '.join(expected)},"
            f" not {_one_line(repr(given.value))}"
        )
    return _section(STORE_TYPES[str(given.value)], prefix, table, source, type=given.value)


# --- settings that depend on each other -------------------------------------------------------------


def _refuse_shared_directories(named: Mapping[str, StoreSettings], source: str) -> None:
    owners: dict[Path, str] = {}
    for name, store in named.items():
        if isinstance(store, FileStore) and owners.setdefault(store.directory, name) != name:
            other = owners[store.directory]
            raise ConfigError(f"{source}: stores.{name}.directory: expected another directory than that of '{other}'")


def _check_together(settings: Settings, given: Layer, source: str) -> None:
    if settings.server.tls_key is not None and settings.server.tls_certificate is None:
        raise ConfigError(f"{given['server.tls_key'].where}: expected server.tls_certificate beside it")
    for section in ("meta_server", "auth_server"):
        _check_peer_server(section, getattr(settings, section), given)
    for role, peers in settings.peer_servers().items():
        if peers.shared_key is None and peers.client_ca is None and not peers.allow:
            raise ConfigError(
                f"{source}: {role}_server: expected shared_key, client_ca or allow for the role '{role}': as it is,"
                " nobody could be let in"
            )
    if settings.metadata.url.reveal().startswith("visor+") and settings.server.workers != 1:
        raise ConfigError(f"{given['server.workers'].where}: expected 1 with a VISOR Meta server as metadata.url")
    if settings.peers.url is not None and not settings.metadata.url.reveal().startswith("postgresql"):
        raise ConfigError(f"{given['peers.url'].where}: expected a PostgreSQL as metadata.url beside it")
    files = [store.directory for store in settings.stores.named.values() if isinstance(store, FileStore)]
    if settings.cache.directory in files:
        where = given["cache.directory"].where
        raise ConfigError(f"{where}: expected another directory than that of a store")


def _check_peer_server(section: str, peers: PeerServer, given: Layer) -> None:
    for key in ("tls_key", "client_ca"):
        if getattr(peers, key) is not None and peers.tls_certificate is None:
            raise ConfigError(f"{given[f'{section}.{key}'].where}: expected {section}.tls_certificate beside it")
