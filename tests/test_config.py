"""What operators may write, and the one line that they get for anything else."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from visor_gateway.config import (
    STORE_TYPES,
    FileStore,
    HdfsStore,
    HttpStore,
    S3Store,
    Secret,
    Settings,
    load,
    sample,
    split_address,
)
from visor_gateway.config.settings import SECTIONS
from visor_gateway.errors import ConfigError

Read = Callable[..., Settings]
S3 = '[stores.s3]\ntype = "s3"\nendpoint = "https://s3.example.org"\nbucket = "images"\n'
HDFS = '[stores.hdfs]\ntype = "hdfs"\nendpoint = "http://namenode:50070"\n'
CANARY = "canary-5f1d"


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Settings from the text of a file and an environment; the data directory is `tmp_path`/data."""

    def read(text: str = "", environ: Mapping[str, str] | None = None, **overrides: object) -> Settings:
        path = tmp_path / "visor-gateway.toml"
        path.write_text(text)
        named = {key.replace("__", "."): value for key, value in overrides.items()}
        return load(path, data_dir=tmp_path / "data", environ=environ or {}, overrides=named)

    return read


def refusal(read: Read, text: str = "", environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text, environ)
    message = str(caught.value)
    assert "\n" not in message
    assert CANARY not in message
    return message


# --- defaults ------------------------------------------------------------------------------------


def test_without_a_configuration_every_setting_has_the_default_of_the_contract(tmp_path: Path) -> None:
    settings = load(None, data_dir=tmp_path, environ={})
    assert settings.server.bind == ("127.0.0.1:4568",)
    assert (settings.server.max_connections, settings.server.max_image_size) == (4096, 1024**4)
    assert (settings.server.stall_timeout, settings.server.drain_timeout) == (60.0, 3600.0)
    assert (settings.server.public_url, settings.server.tls_certificate, settings.server.tls_key) == (None, None, None)
    assert (settings.server.trusted_proxies, settings.server.origins) == ((), ())
    assert (settings.auth.anonymous_pull, settings.auth.visor_sha1, settings.auth.clock_skew) == (False, True, 300)
    assert settings.auth.master_key_file is None
    assert settings.metadata.url.reveal() == f"sqlite:///{tmp_path}/visor.sqlite3"
    assert settings.digests.visor_md5 is False
    assert (settings.cache.directory, settings.cache.max_bytes) == (tmp_path / "cache", 0)
    assert settings.locations.allow == ("http", "https")
    assert (settings.locations.deny_private, settings.locations.allow_hosts) == (True, ())
    assert settings.metrics.allow == (ip_network("127.0.0.0/8"), ip_network("::1"))
    assert (settings.log.level, settings.log.format) == ("info", "text")
    assert settings.stores.default == "file"
    assert settings.stores.named == {"file": FileStore(directory=tmp_path / "images"), "http": HttpStore()}


def test_settings_can_not_be_changed(read: Read) -> None:
    with pytest.raises(AttributeError):
        read().server.max_connections = 1  # type: ignore[misc]


def test_reading_settings_makes_no_file_and_no_directory(tmp_path: Path) -> None:
    load(None, data_dir=tmp_path / "data", environ={})
    assert list(tmp_path.iterdir()) == []


def test_the_cache_goes_where_systemd_made_a_directory_for_it(read: Read) -> None:
    assert read(environ={"CACHE_DIRECTORY": "/var/cache/visor-gateway:/x"}).cache.directory == Path(
        "/var/cache/visor-gateway"
    )


# --- sources and their order -----------------------------------------------------------------------


def test_the_command_line_outdoes_the_environment_which_outdoes_the_file(read: Read) -> None:
    text = '[server]\nbind = ["127.0.0.1:1"]\nmax_connections = 1\nstall_timeout = 1'
    environ = {"VISOR_GATEWAY__SERVER__BIND": "127.0.0.1:2", "VISOR_GATEWAY__SERVER__MAX_CONNECTIONS": "2"}
    server = read(text, environ, server__bind=("127.0.0.1:3",)).server
    assert (server.bind, server.max_connections, server.stall_timeout) == (("127.0.0.1:3",), 2, 1.0)


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("SERVER__BIND", "127.0.0.1:1, [::1]:2", "server.bind", ("127.0.0.1:1", "[::1]:2")),
        ("SERVER__BIND", "[::1]:1,[::1]:2", "server.bind", ("[::1]:1", "[::1]:2")),
        ("SERVER__BIND", '["[::1]:1", "localhost:2"]', "server.bind", ("[::1]:1", "localhost:2")),
        ("SERVER__BIND", "unix:/run/x.sock", "server.bind", ("unix:/run/x.sock",)),
        ("SERVER__ORIGINS", "", "server.origins", ()),
        ("SERVER__STALL_TIMEOUT", "2.5", "server.stall_timeout", 2.5),
        ("SERVER__MAX_CONNECTIONS", "16", "server.max_connections", 16),
        ("SERVER__MAX_IMAGE_SIZE", "4096", "server.max_image_size", 4096),
        ("SERVER__MAX_IMAGE_SIZE", "10 GiB", "server.max_image_size", 10 * 1024**3),
        ("AUTH__ANONYMOUS_PULL", "true", "auth.anonymous_pull", True),
        ("AUTH__VISOR_SHA1", "No", "auth.visor_sha1", False),
        ("LOG__LEVEL", "debug", "log.level", "debug"),
        ("METRICS__ALLOW", "10.0.0.0/8,::1", "metrics.allow", (ip_network("10.0.0.0/8"), ip_network("::1"))),
        ("STORES__DEFAULT", "http", "stores.default", "http"),
        ("STORES__RETRY_TIMEOUT", "7.5", "stores.retry_timeout", 7.5),
        ("STORES__VERIFY_DIRECT_PULLS", "false", "stores.verify_direct_pulls", False),
    ],
)
def test_every_kind_of_value_can_be_an_environment_variable(
    read: Read, variable: str, text: str, key: str, value: object
) -> None:
    section, _, name = key.partition(".")
    assert getattr(getattr(read(environ={f"VISOR_GATEWAY__{variable}": text}), section), name) == value


def test_a_store_can_be_described_by_environment_variables_alone(read: Read) -> None:
    described = {
        "TYPE": "s3",
        "ENDPOINT": "http://127.0.0.1:9000/",
        "BUCKET": "b",
        "ACCESS_KEY": "a",
        "SECRET_KEY": "s",
    }
    environ = {f"VISOR_GATEWAY__STORES__COLD_S3__{key}": value for key, value in described.items()}
    store = read(environ=environ).stores.named["cold_s3"]
    assert store == S3Store(
        endpoint="http://127.0.0.1:9000", bucket="b", access_key=Secret("a"), secret_key=Secret("s")
    )


@pytest.mark.parametrize("endpoint", ['"http://a:1/, https://b:2"', '["http://a:1", "https://b:2/"]'])
def test_an_hdfs_store_may_name_several_namenodes(read: Read, endpoint: str) -> None:
    store = read(
        f'[stores.hdfs]\nendpoint = {endpoint}\ndirectory = "/visor/images/"\nusername = "visor"'
    ).stores.named["hdfs"]
    assert isinstance(store, HdfsStore)
    assert (store.endpoint, store.directory) == (("http://a:1", "https://b:2"), "/visor/images")


def test_other_environment_variables_are_left_alone(read: Read) -> None:
    read(environ={"VISOR_GATEWAY_CONFIG": "x", "VISOR_URL": "y", "VISOR_GATEWAY": "z"})


def test_a_relative_path_is_relative_to_the_file_that_names_it(read: Read, tmp_path: Path) -> None:
    store = read('[stores.file]\ntype = "file"\ndirectory = "here"').stores.named["file"]
    assert store == FileStore(directory=tmp_path / "here")


# --- secrets ---------------------------------------------------------------------------------------


def secret_key(settings: Settings) -> str:
    store = settings.stores.named["s3"]
    assert isinstance(store, S3Store)
    return store.secret_key.reveal()


def test_a_secret_comes_from_the_file_that_its_key_names(read: Read, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{CANARY}\n")
    text = f'{S3}access_key = "a"\n'
    assert secret_key(read(f'{text}secret_key_file = "key"')) == CANARY
    variable = {"VISOR_GATEWAY__STORES__S3__SECRET_KEY_FILE": str(tmp_path / "key")}
    assert secret_key(read(f'{text}secret_key = "other"', variable)) == CANARY


def test_secrets_come_from_systemd_credentials(read: Read, tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    files = {"stores.s3.access_key": "a", "stores.s3.secret_key": CANARY, "metadata.url": "postgresql://u:p@h/n"}
    files["accounts.url"] = "visor+https://:p@[::1]:4566"
    for name, content in (files | {"master.key": "m", "someone.elses": "x"}).items():
        (credentials / name).write_text(content)
    settings = read(S3, {"CREDENTIALS_DIRECTORY": str(credentials)})
    assert secret_key(settings) == CANARY
    assert settings.metadata.url.reveal() == "postgresql://u:p@h/n"
    assert settings.accounts.url is not None
    assert settings.accounts.url.reveal() == "visor+https://:p@[::1]:4566"
    assert settings.auth.master_key_file == credentials / "master.key"


def test_the_master_key_file_of_the_configuration_is_taken_unless_a_credential_is_there(read: Read) -> None:
    assert read('[auth]\nmaster_key_file = "/k"').auth.master_key_file == Path("/k")


def test_no_text_of_the_settings_shows_a_secret(read: Read) -> None:
    text = f'{S3}access_key = "{CANARY}"\nsecret_key = "{CANARY}"\n[metadata]\nurl = "postgresql://u:{CANARY}@h/n"'
    settings = read(text)
    for shown in (repr(settings), str(settings), f"{settings}", str(settings.shown()), f"{settings.metadata.url}"):
        assert CANARY not in shown
        assert "***" in shown


def test_a_secret_equals_only_a_secret_of_the_same_text() -> None:
    assert Secret("a") == Secret("a")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "No such file"), (b"", "empty"), (b"\n", "empty"), (b"\xff", "UTF-8"), (b"x" * 70_000, "too long")],
)
def test_a_secret_file_that_holds_no_secret_is_refused(
    read: Read, tmp_path: Path, content: bytes | None, expected: str
) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    message = refusal(read, f'{S3}access_key = "a"\nsecret_key_file = "key"')
    assert "stores.s3.secret_key_file" in message
    assert str(tmp_path / "key") in message
    assert expected in message


def test_a_secret_given_twice_in_one_place_is_refused(read: Read) -> None:
    message = refusal(read, f'{S3}access_key = "a"\nsecret_key = "{CANARY}"\nsecret_key_file = "key"')
    assert "expected only one of stores.s3.secret_key and stores.s3.secret_key_file" in message


def test_certificate_and_key_of_tls_come_from_systemd_credentials(read: Read, tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for name in ("server.tls_certificate", "server.tls_key", "server.bind"):
        (credentials / name).write_text("PEM")
    server = read('[server]\ntls_certificate = "other.pem"\n', {"CREDENTIALS_DIRECTORY": str(credentials)}).server
    assert server.tls_certificate == credentials / "server.tls_certificate"
    assert server.tls_key == credentials / "server.tls_key"
    assert server.bind == ("127.0.0.1:4568",)


def test_credentials_that_can_not_be_listed_are_refused(read: Read) -> None:
    assert "/nowhere" in refusal(read, environ={"CREDENTIALS_DIRECTORY": "/nowhere"})


# --- refusals --------------------------------------------------------------------------------------

WRONG = [
    ("server = 3", "server", "a table"),
    ("[serve]", "serve", "one of server, meta_server"),
    ("[server]\nbindd = 1", "server.bindd", "one of: bind, roles, workers, public_url"),
    ('[server]\nbind = "127.0.0.1:1"', "server.bind", "a list of HOST:PORT"),
    ("[server]\nbind = []", "server.bind", "at least one"),
    ('[server]\nbind = ["127.0.0.1"]', "server.bind", "HOST:PORT"),
    ('[server]\nbind = ["unix:relative"]', "server.bind", "unix:/PATH"),
    ('[server]\nbind = ["127.0.0.1:65536"]', "server.bind", "HOST:PORT"),
    ('[server]\nbind = ["::1:80"]', "server.bind", "HOST:PORT"),
    ('[server]\nbind = ["300.0.0.1:80"]', "server.bind", "HOST:PORT"),
    ('[server]\nbind = ["127.0.0.1:1", "127.0.0.1:1"]', "server.bind", "each once"),
    ('[server]\npublic_url = "images.example.org"', "server.public_url", "http(s)://HOST[:PORT]"),
    ('[server]\npublic_url = "https://images.example.org/visor"', "server.public_url", "without a path"),
    (f'[server]\npublic_url = "https://u:{CANARY}@h"', "server.public_url", "http(s)://HOST[:PORT]"),
    ('[server]\npublic_url = "https://h:99999"', "server.public_url", "http(s)://HOST[:PORT]"),
    ('[server]\ntls_key = "/key"', "server.tls_key", "server.tls_certificate"),
    ("[server]\nmax_connections = 0", "server.max_connections", "at least 1"),
    ("[server]\nmax_connections = true", "server.max_connections", "a whole number"),
    ("[server]\nmax_connections = 1.5", "server.max_connections", "a whole number"),
    ('[server]\nmax_connections = "1"', "server.max_connections", "a whole number"),
    ("[server]\nstall_timeout = 0", "server.stall_timeout", "more than 0"),
    ("[server]\nstall_timeout = inf", "server.stall_timeout", "seconds"),
    ("[server]\ndrain_timeout = -1", "server.drain_timeout", "0 or more"),
    ('[server]\nmax_image_size = "10 Gib of disk"', "server.max_image_size", "10 GiB"),
    ("[server]\nmax_image_size = 0", "server.max_image_size", "more than 0"),
    ('[server]\ntrusted_proxies = ["10.0.0.1/8"]', "server.trusted_proxies", "networks"),
    ('[server]\norigins = ["https://a/b"]', "server.origins", "origins"),
    ('[auth]\nanonymous_pull = "true"', "auth.anonymous_pull", "true or false"),
    ("[auth]\nclock_skew = -1", "auth.clock_skew", "a whole number"),
    ('[metadata]\nurl = "mysql://u:canary-5f1d@h/n"', "metadata.url", "sqlite:///PATH, postgresql://"),
    ('[accounts]\nurl = "http://h:4566"', "accounts.url", "visor+http://HOST:PORT"),
    (f'[accounts]\nurl = "visor+http://u:{CANARY}@h"', "accounts.url", "visor+http://HOST:PORT"),
    (f'[accounts]\nurl = "visor+https://:{CANARY}@h/path"', "accounts.url", "visor+http://HOST:PORT"),
    ("[cache]\nmax_bytes = -1", "cache.max_bytes", "bytes"),
    ("[cache]\nfinish_percent = 101", "cache.finish_percent", "a whole number from 0 to 100"),
    ('[cache]\ndirectory = "data/images"', "cache.directory", "another directory"),
    ('[locations]\nallow = ["file"]', "locations.allow", "http, https"),
    ('[locations]\nallow_hosts = ["http://h"]', "locations.allow_hosts", "host or host:port"),
    ('[metrics]\nallow = ["everyone"]', "metrics.allow", "networks"),
    ('[log]\nlevel = "loud"', "log.level", "one of debug, info, warning, error"),
    ('[log]\nformat = "xml"', "log.format", "one of text, json"),
    ('[stores]\ndefault = "s3"', "stores.default", "one of the configured stores file, http"),
    ("[stores]\ndefault = 3", "stores.default", "text"),
    ("[stores]\nretry_timeout = -1", "stores.retry_timeout", "seconds, 0 or more"),
    ("[stores.retry_timeout]", "stores.retry_timeout", "seconds, 0 or more"),
    ('[stores]\nfiles = "x"', "stores.files", "a table that describes a store"),
    ("[stores.tape]", "stores.tape", "one of file, s3, lunacloud, cumulus, walrus, hdfs, http"),
    ('[stores.s3]\ntype = "file"', "stores.s3.type", "one of s3"),
    ("[stores.s3]\ntype = 3", "stores.s3.type", "one of s3"),
    ('[stores.lcs]\ntype = "lunacloud"', "stores.lcs", "a store name"),
    ('[stores."../x"]\ntype = "file"', "stores.../x", "a store name"),
    ('[stores.http]\ntype = "http"\ndirectory = "x"', "stores.http.directory", "expected one of: transfers"),
    ('[stores.hdfs]\ntype = "hdfs"\nendpoint = "hdfs://n"', "stores.hdfs.endpoint", "http(s)://HOST"),
    ('[stores.hdfs]\ntype = "hdfs"\nendpoint = "http://n:50070"', "stores.hdfs.directory", "missing"),
    ('[stores.hdfs]\ntype = "hdfs"\nendpoint = []', "stores.hdfs.endpoint", "or a list of such"),
    ('[stores.hdfs]\ntype = "hdfs"\nendpoint = "http://n,http://n"', "stores.hdfs.endpoint", "each once"),
    (f'{HDFS}directory = "images"\nusername = "v"', "stores.hdfs.directory", "an absolute path"),
    (f'{HDFS}directory = "/a/../b"\nusername = "v"', "stores.hdfs.directory", "an absolute path"),
    (f'{HDFS}directory = "/"\nusername = "v"', "stores.hdfs.directory", "below /"),
    (f'{HDFS}directory = "/a"\nusername = "v&op=x"', "stores.hdfs.username", "a name of letters"),
    (f'{S3}access_key = "a"\nsecret_key = ["canary-5f1d"]', "stores.s3.secret_key", "text"),
    ('[stores.more]\ntype = "file"\ndirectory = "data/images"', "stores.more.directory", "another directory"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key", "expected"), WRONG, ids=[f"{key}-{n}" for n, (_, key, _) in enumerate(WRONG)])
def test_a_wrong_setting_is_refused_with_file_key_and_what_was_expected(
    read: Read, tmp_path: Path, text: str, key: str, expected: str
) -> None:
    message = refusal(read, text)
    assert str(tmp_path / "visor-gateway.toml") in message
    assert key in message
    assert expected in message


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("VISOR_GATEWAY__SERVER__MAX_CONNECTIONS", "many", "a whole number"),
        ("VISOR_GATEWAY__SERVER__STALL_TIMEOUT", "nan", "seconds"),
        ("VISOR_GATEWAY__AUTH__VISOR_SHA1", "maybe", "true or false"),
        ("VISOR_GATEWAY__SERVER__ORIGINS", "[", "origins"),
        ("VISOR_GATEWAY__SERVER__NOTHING", "1", "one of: bind"),
        ("VISOR_GATEWAY__NOTHING__KEY", "1", "one of server, meta_server"),
        ("VISOR_GATEWAY__SERVER", "1", "one of server, meta_server"),
        ("VISOR_GATEWAY__", "1", "one of server, meta_server"),
        ("VISOR_GATEWAY__STORES__S3", "1", "stores.NAME.KEY"),
        ("VISOR_GATEWAY__METADATA__URL", CANARY, "sqlite:///PATH"),
    ],
)
def test_a_wrong_variable_is_refused_by_its_name(read: Read, variable: str, text: str, expected: str) -> None:
    message = refusal(read, environ={variable: text})
    assert variable in message
    assert expected in message


@pytest.mark.parametrize("text", ["[server", "bind = ", "[server]\nbind = []\nbind = []", "[log]\n[log]"])
def test_a_file_that_is_no_toml_is_refused(read: Read, tmp_path: Path, text: str) -> None:
    assert f"{tmp_path / 'visor-gateway.toml'}: expected TOML" in refusal(read, text)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_a_file_that_can_not_be_read_is_refused(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    path = tmp_path / "x.toml"
    make(path)
    with pytest.raises(ConfigError, match=r"x\.toml: expected a readable configuration file"):
        load(path, data_dir=tmp_path, environ={})


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(path, data_dir=tmp_path, environ={})


# --- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:0", ("::1", 0)),
        ("LocalHost:65535", ("localhost", 65535)),
        ("0.0.0.0:4568", ("0.0.0.0", 4568)),
    ],
)
def test_an_address_splits_into_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert split_address(text) == address


@pytest.mark.parametrize(
    "text", ["", ":80", "80", "a b:80", "[::1]", "[x]:1", "h:-1", "h:+1", "h:٣", "1.2.3:80", "-h:1"]
)
def test_what_is_no_address_does_not_split(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        split_address(text)


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("1 B", 1), ("2 kB", 2000), ("2KiB", 2048), ("1.5 MiB", 1572864), ("1T", 10**12)]
)
def test_a_size_can_be_written_with_its_unit(read: Read, text: str, size: int) -> None:
    assert read(f'[server]\nmax_image_size = "{text}"').server.max_image_size == size


def test_origins_and_hosts_are_kept_as_clients_send_them(read: Read) -> None:
    settings = read(
        '[server]\npublic_url = "HTTPS://Images.Example.org:443/"\norigins = ["http://A:80", "http://[::1]:8080"]\n'
        '[locations]\nallow_hosts = ["Mirror.Example.org", "10.0.0.1:8080", "[::1]", "::2", "[::3]:80"]'
    )
    assert settings.server.public_url == "https://images.example.org"
    assert settings.server.origins == ("http://a", "http://[::1]:8080")
    assert settings.locations.allow_hosts == ("mirror.example.org", "10.0.0.1:8080", "::1", "::2", "[::3]:80")


# --- the sample ------------------------------------------------------------------------------------


def test_the_sample_configuration_changes_nothing(read: Read, tmp_path: Path) -> None:
    assert read(sample(tmp_path / "data")) == read()


def uncommented(data_dir: Path) -> dict[str, Any]:
    """The sample with every setting switched on."""
    lines = (line.removeprefix("# ") for line in sample(data_dir).splitlines())
    return tomllib.loads("\n".join(line for line in lines if re.match(r"\[[a-z0-9_.]+\]$|[a-z0-9_]+ = ", line)))


def test_the_sample_holds_every_setting_and_every_type_of_store(tmp_path: Path) -> None:
    tables = uncommented(tmp_path)
    stores = tables.pop("stores")
    assert stores.pop("default") == "file"
    assert stores.pop("retry_timeout") == 60
    assert stores.pop("verify_direct_pulls") is True
    assert stores.pop("unsafe_images") == "refuse"
    assert {name: list(table) for name, table in tables.items()} == {
        name: [declared.key for declared in cls.declared()] for name, cls in SECTIONS.items() if name != "stores"
    }
    assert {name: list(table) for name, table in stores.items()} == {
        name: ["type", *(declared.key for declared in cls.declared())] for name, cls in STORE_TYPES.items()
    }


def test_the_sample_shows_the_defaults(read: Read, tmp_path: Path) -> None:
    sampled, shown = uncommented(tmp_path / "data"), read().shown()
    # A secret is not shown.
    assert (sampled["metadata"].pop("url"), shown["metadata"].pop("url")) == (
        f"sqlite:///{tmp_path}/data/visor.sqlite3",
        "***",
    )
    for section in sampled.keys() - {"stores"}:
        # An empty text stands for what has no default.
        assert {key: value or None for key, value in sampled[section].items()} == {
            key: value or None for key, value in shown[section].items()
        }


def test_lines_of_the_sample_fit_a_terminal() -> None:
    assert max(map(len, sample(Path("/var/lib/visor-gateway")).splitlines())) <= 120
