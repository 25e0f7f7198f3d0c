"""Which gateway and which keys a command uses, in the order that the contract names."""

from __future__ import annotations

from pathlib import Path

import pytest

from visor_gateway.cli import settings
from visor_gateway.cli.settings import Options, find_gateway, same_gateway
from visor_gateway.client import CredentialsInvalid, KeyPair, Token


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment without any file of credentials."""
    monkeypatch.setattr(settings, "SYSTEM_FILE", tmp_path / "var" / "admin.toml")
    return {"HOME": str(tmp_path)}


def put(path: Path, name: str, url: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    line = f'url = "{url}"\n' if url else ""
    path.write_text(f'{line}access_key = "{name}"\nsecret_key = "secret of {name}"\n')
    return path


def pair(name: str) -> KeyPair:
    return KeyPair(name, f"secret of {name}")


def test_without_anything_it_is_the_gateway_of_this_host_and_nobody(home: dict[str, str]) -> None:
    found = find_gateway(Options(), home)
    assert (found.url, found.credentials) == ("http://127.0.0.1:4568", None)


@pytest.mark.parametrize(
    ("options", "url"),
    [
        (Options(host="gateway"), "http://gateway:4568"),
        (Options(port=80), "http://127.0.0.1:80"),
        (Options(host="::1", port=1), "http://[::1]:1"),
        (Options(host="[::1]"), "http://[::1]:4568"),
        (Options(host="https://gateway", port=443), "https://gateway:443"),
        (Options(host="gateway", url="http://other"), "http://other"),
    ],
)
def test_options_make_the_url(home: dict[str, str], options: Options, url: str) -> None:
    assert find_gateway(options, home | {"VISOR_URL": "http://environment"}).url == url


def test_every_place_goes_before_those_behind_it(home: dict[str, str], tmp_path: Path) -> None:
    url = "http://127.0.0.1:4568"
    put(tmp_path / "var" / "admin.toml", "system", url)
    assert find_gateway(Options(), home).credentials == pair("system")
    put(tmp_path / ".local/state/visor-gateway/admin.toml", "state", url)
    assert find_gateway(Options(), home).credentials == pair("state")
    put(tmp_path / ".config/visor/credentials.toml", "config", "http://config")
    assert find_gateway(Options(), home).credentials == pair("config")
    assert find_gateway(Options(), home).url == "http://config"
    named = home | {"VISOR_CREDENTIALS": str(put(tmp_path / "named.toml", "named", "http://named"))}
    assert find_gateway(Options(), named).credentials == pair("named")
    option = Options(credentials=put(tmp_path / "option.toml", "option", "http://option"))
    assert find_gateway(option, named).url == "http://option"
    environment = named | {
        "VISOR_ACCESS_KEY": "environment",
        "VISOR_SECRET_KEY": "secret of environment",
        "VISOR_URL": "http://environment",
    }
    found = find_gateway(option, environment)
    assert (found.url, found.credentials) == ("http://environment", pair("environment"))
    said = Options(access_key="said", secret_key="secret of said", url="http://said")
    found = find_gateway(said, environment | {"VISOR_TOKEN": "t"})
    assert (found.url, found.credentials) == ("http://said", pair("said"))


def test_the_xdg_directories_count_and_relative_ones_do_not(home: dict[str, str], tmp_path: Path) -> None:
    put(tmp_path / "c" / "visor" / "credentials.toml", "config", "http://config")
    put(tmp_path / "s" / "visor-gateway" / "admin.toml", "state", "http://state")
    assert find_gateway(Options(), home | {"XDG_STATE_HOME": str(tmp_path / "s")}).url == "http://state"
    assert find_gateway(Options(), home | {"XDG_CONFIG_HOME": str(tmp_path / "c")}).url == "http://config"
    assert find_gateway(Options(), home | {"XDG_CONFIG_HOME": "c"}).credentials is None


def test_keys_that_were_only_found_go_to_their_own_gateway_alone(home: dict[str, str], tmp_path: Path) -> None:
    path = put(tmp_path / ".local/state/visor-gateway/admin.toml", "state", "http://127.0.0.1:4568")
    found = find_gateway(Options(url="http://elsewhere"), home)
    assert (found.credentials, found.withheld) == (None, path)
    assert find_gateway(Options(host="localhost"), home).credentials == pair("state")
    assert find_gateway(Options(port=4569), home).credentials is None


def test_keys_of_a_file_that_was_named_go_where_they_are_sent(home: dict[str, str], tmp_path: Path) -> None:
    path = put(tmp_path / "named.toml", "named", "http://127.0.0.1:4568")
    assert find_gateway(Options(url="http://elsewhere", credentials=path), home).credentials == pair("named")


def test_a_token_goes_before_keys(home: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "token.toml"
    path.write_text('token = "t"\n')
    assert find_gateway(Options(credentials=path), home).credentials == Token("t")
    environment = home | {"VISOR_TOKEN": "e", "VISOR_ACCESS_KEY": "a", "VISOR_SECRET_KEY": "b"}
    assert find_gateway(Options(), environment).credentials == Token("e")


@pytest.mark.parametrize("half", [{"VISOR_ACCESS_KEY": "a"}, {"VISOR_SECRET_KEY": "b"}])
def test_half_a_pair_of_keys_is_told(home: dict[str, str], half: dict[str, str]) -> None:
    with pytest.raises(CredentialsInvalid, match="is missing"):
        find_gateway(Options(), home | half)


def test_a_file_that_was_named_must_be_there(home: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(CredentialsInvalid, match="No such file"):
        find_gateway(Options(credentials=tmp_path / "missing.toml"), home)


def test_a_file_that_was_found_and_is_broken_is_told(home: dict[str, str], tmp_path: Path) -> None:
    put(tmp_path / ".config/visor/credentials.toml", "x").write_text("=")
    with pytest.raises(CredentialsInvalid, match="not a TOML file"):
        find_gateway(Options(), home)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("http://localhost:80/x", True),
        ("http://127.0.0.1", True),
        ("http://[::1]", True),
        ("https://127.0.0.1:80", False),
        ("http://127.0.0.2", False),
        ("http://127.0.0.1:bad", False),
    ],
)
def test_gateways_are_told_apart_by_their_address(other: str, same: bool) -> None:
    assert same_gateway("http://127.0.0.1", other) is same
