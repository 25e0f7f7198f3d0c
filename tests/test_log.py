"""What reaches the log, and what never does."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog
import trio

from visor_gateway import log
from visor_gateway.config import Secret
from visor_gateway.log import redact

Configure = Callable[..., io.StringIO]
CANARY = "canary5f1d"


@pytest.fixture
def configure() -> Iterator[Configure]:
    """Set up logging to a buffer; afterwards logging is as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    buffer = io.StringIO()

    def configure(level: str = "info", format: str = "text", **options: Any) -> io.StringIO:
        log.configure(level, format, stream=buffer, environ={}, **options)
        return buffer

    yield configure
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def logger() -> Any:
    return structlog.get_logger("visor_gateway.test")


def test_text_is_one_line_with_time_level_event_and_values(configure: Configure) -> None:
    output = configure()
    logger().info("pull began", image="a b", bytes=3, user=None)
    assert re.fullmatch(
        r'\d{4}-\d\d-\d\dT[\d:.]+Z info    pull began image="a b" bytes=3 logger=visor_gateway.test\n',
        output.getvalue(),
    )


def test_json_is_one_object_a_line(configure: Configure) -> None:
    output = configure(format="json")
    logger().warning("store\nfailed", store="file", path=Path("/x"))
    logger().error("again", values=[1, {"a": 2}])
    first, second = map(json.loads, output.getvalue().splitlines())
    assert (first["event"], first["level"], first["store"], first["path"]) == ("store\nfailed", "warning", "file", "/x")
    assert second["values"] == [1, {"a": 2}]


def test_what_is_below_the_level_is_not_logged(configure: Configure) -> None:
    output = configure("warning")
    logger().info("hidden")
    logger().warning("shown")
    assert "hidden" not in output.getvalue()
    assert "shown" in output.getvalue()


def test_configuring_again_changes_level_and_format_of_loggers_in_use(configure: Configure) -> None:
    output = configure("error")
    used = logger()
    used.info("hidden")
    configure("debug", "json")
    used.debug("shown")
    assert json.loads(output.getvalue())["event"] == "shown"


def test_libraries_log_through_the_same_lines(configure: Configure) -> None:
    output = configure(format="json")
    logging.getLogger("hypercorn.error").warning("closed %s", "early")
    logging.getLogger("sqlalchemy.engine").info("SELECT")
    (line,) = map(json.loads, output.getvalue().splitlines())
    assert (line["event"], line["logger"], line["level"]) == ("closed early", "hypercorn.error", "warning")


def test_debugging_shows_what_libraries_say(configure: Configure) -> None:
    output = configure("debug")
    logging.getLogger("alembic.runtime").info("migrated")
    assert "migrated" in output.getvalue()


async def test_request_and_transfer_id_follow_into_tasks_and_threads(configure: Configure) -> None:
    output = configure(format="json")
    structlog.contextvars.bind_contextvars(request_id="r1", transfer_id="t1")

    async def task() -> None:
        await trio.to_thread.run_sync(lambda: logger().info("in a thread"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        nursery.start_soon(task)
    logging.getLogger("quart.app").error("in a library")
    for line in map(json.loads, output.getvalue().splitlines()):
        assert (line["request_id"], line["transfer_id"]) == ("r1", "t1")


def test_no_client_writes_lines_of_its_own(configure: Configure) -> None:
    output = configure()
    logger().info("a\nforged", name="b\r\nforged \x1b[31m", other="x=\u2028y")
    try:
        raise ValueError("c\n2030-01-01T00:00:00Z error forged")
    except ValueError:
        logger().exception("failed")
    lines = output.getvalue().split("\n")
    assert not any("\r" in line or "\x1b" in line or "\u2028" in line for line in lines)
    assert sum(bool(re.match(r"\d{4}-", line)) for line in lines) == 2


# --- the journal -----------------------------------------------------------------------------------


def configure_for_journal(stream: TextIO, taker: Path, *, same: bool = True, format: str = "text") -> None:
    """Log to a stream that the journal reads (or doesn't), which takes entries with fields at the socket `taker`."""
    status = os.fstat(stream.fileno())
    environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino if same else 1}"}
    log.configure("debug", format, stream=stream, environ=environ, journal_socket=str(taker))


def journal_lines(tmp_path: Path, *, same: bool, format: str = "text") -> list[str]:
    with (tmp_path / "journal").open("w+") as stream:
        configure_for_journal(stream, tmp_path / "nobody", same=same, format=format)
        for level in ("debug", "info", "warning", "error", "critical"):
            getattr(logger(), level)(level)
        try:
            raise ValueError("why")
        except ValueError:
            logger().exception("failed")
        stream.seek(0)
        return stream.read().splitlines()


@pytest.mark.usefixtures("configure")
def test_the_journal_gets_a_priority_on_every_line_and_no_time(tmp_path: Path) -> None:
    lines = journal_lines(tmp_path, same=True)
    assert [line[:3] for line in lines[:5]] == ["<7>", "<6>", "<4>", "<3>", "<2>"]
    assert lines[1] == "<6>info logger=visor_gateway.test"
    assert all(line.startswith("<3>") for line in lines[5:])
    assert any("ValueError: why" in line for line in lines[5:])


@pytest.mark.usefixtures("configure")
def test_a_stream_that_is_not_the_journal_gets_no_priorities(tmp_path: Path) -> None:
    assert not any(line.startswith("<") for line in journal_lines(tmp_path, same=False))


@pytest.mark.usefixtures("configure")
def test_json_in_the_journal_stays_json_behind_its_priority(tmp_path: Path) -> None:
    lines = journal_lines(tmp_path, same=True, format="json")
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>", "<2>", "<3>"]
    assert all(json.loads(line[3:]) for line in lines)


@pytest.fixture
def taker(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.setblocking(False)
        yield sock


def entry(taker: socket.socket) -> dict[str, str]:
    """The next entry, read as the journal would."""
    data, fields = taker.recv(1 << 20), {}
    while data:
        line, _, data = data.partition(b"\n")
        name, mark, value = line.partition(b"=")
        if not mark:
            length = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + length], data[8 + length + 1 :]
        fields[name.decode()] = value.decode()
    return fields


@pytest.mark.usefixtures("configure")
def test_an_event_reaches_the_journal_as_an_entry_with_fields(tmp_path: Path, taker: socket.socket) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        configure_for_journal(stream, tmp_path / "socket")
        logger().warning("store can't be used", store="s3", tries=2, **{"x-y": "a\nPRIORITY=0"}, user=None)
        assert entry(taker) == {
            "MESSAGE": 'store can\'t be used store=s3 tries=2 x-y="a\\nPRIORITY=0" logger=visor_gateway.test',
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "visor-gateway",
            "VISOR_EVENT": "store can't be used",
            "VISOR_STORE": "s3",
            "VISOR_TRIES": "2",
            "VISOR_X_Y": "a\nPRIORITY=0",
            "VISOR_LOGGER": "visor_gateway.test",
        }
        logging.getLogger("some.library").error("failed with %s", "token=abc")
        found = entry(taker)
        assert found["PRIORITY"] == "3"
        assert found["MESSAGE"].startswith("failed with token=*** ")
        try:
            raise ValueError("why")
        except ValueError:
            logger().exception("failed")
        found = entry(taker)
        assert found["MESSAGE"].startswith("failed logger=visor_gateway.test\n  Traceback")
        assert found["MESSAGE"].endswith("\n  ValueError: why")
        assert (tmp_path / "journal").read_text() == ""


@pytest.mark.usefixtures("configure")
def test_what_the_journal_does_not_take_goes_to_its_stream(tmp_path: Path, taker: socket.socket) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        configure_for_journal(stream, tmp_path / "socket")
        logger().error("long", text="x" * (1 << 20))
        written = os.fstat(stream.fileno()).st_size
        while os.fstat(stream.fileno()).st_size == written:
            logger().info("full")
        taker.close()
        logger().info("gone")
        lines = (tmp_path / "journal").read_text().splitlines()
    assert lines[0].startswith("<3>long text=xxx")
    assert lines[1] == "<6>full logger=visor_gateway.test"
    assert lines[-1] == "<6>gone logger=visor_gateway.test"


@pytest.mark.usefixtures("configure")
def test_lines_of_requests_go_to_the_stream(tmp_path: Path, taker: socket.socket) -> None:
    class Line(log.Prepared):
        def text(self) -> str:
            return "request path=/"

        def values(self) -> dict[str, Any]:
            return {"event": "request"}

    with (tmp_path / "journal").open("w+") as stream:
        configure_for_journal(stream, tmp_path / "socket")
        logging.getLogger("visor_gateway.access").info(Line())
        assert (tmp_path / "journal").read_text() == "<6>request path=/ logger=visor_gateway.access\n"
    with pytest.raises(BlockingIOError):
        taker.recv(1)


# --- redaction -------------------------------------------------------------------------------------

SECRETS = [
    f"GET /images/1?sig={CANARY}&x=1",
    f"/images/1?x=1&ticket={CANARY}",
    f"/transfers/ws?%74icket={CANARY}",
    f"?a=b,sig={CANARY}",
    f"?x-amz-signature={CANARY}",
    f"Authorization: VISOR key:{CANARY}",
    f"authorization=Bearer {CANARY}",
    f"('Authorization', 'Bearer {CANARY}')",
    f"b'authorization', b'VISOR-HMAC-SHA256 k:{CANARY}'",
    f"got Bearer {CANARY}.",
    f"got VISOR key:{CANARY}=",
    f"VISOR-HMAC-SHA256 key:{CANARY}+/=",
    f"Proxy-Authorization: Basic {CANARY}==",
    f"postgresql://user:{CANARY}@host/db",
    f"http://{CANARY}@host/",
    f"{{'secret_key': '{CANARY}', 'x': 1}}",
    f'{{"token": "{CANARY}"}}',
    f"password={CANARY}",
]


@pytest.mark.parametrize("text", SECRETS)
def test_redact_hides_secrets_in_text(text: str) -> None:
    assert CANARY not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "VISOR gateway is ready",
        "GET /images/detail?sort=name&dir=asc",
        "signature does not match",
        "http://127.0.0.1:4568/images/1",
        "user=admin",
        "12:30 basic checks done",
        "{'image': 'a', 'size': 3}",
    ],
)
def test_redact_leaves_other_text_as_it_is(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize(
    "values",
    [
        *({"value": text} for text in SECRETS),
        {"authorization": CANARY},
        {"Secret-Key": CANARY},
        {"token": CANARY.encode()},
        {"headers": [(b"authorization", CANARY.encode()), (b"x", b"y")]},
        {"headers": {b"Cookie": CANARY}},
        {"nested": {"list": [{"ticket": CANARY}, f"sig={CANARY}", f"sig={CANARY}".encode()]}},
        {"query": f"sig={CANARY}".encode()},
        {"error": ValueError(f"token={CANARY}")},
        {"setting": Secret(CANARY)},
    ],
    ids=str,
)
def test_no_value_shows_a_secret(configure: Configure, format: str, values: dict[str, Any]) -> None:
    output = configure(format=format)
    logger().info("event", **values)
    assert "event" in output.getvalue()
    assert CANARY not in output.getvalue()
    assert "***" in output.getvalue()


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize("text", SECRETS)
def test_no_event_or_exception_shows_a_secret(configure: Configure, format: str, text: str) -> None:
    output = configure(format=format)
    try:
        raise ExceptionGroup(text, [OSError(text)])
    except ExceptionGroup:
        logger().exception(text)
        logging.getLogger("asyncio").exception("%s", text)
    assert output.getvalue().count("OSError: ") == 2
    assert CANARY not in output.getvalue()


def test_warnings_are_logged(configure: Configure) -> None:
    output = configure()
    logging.getLogger("py.warnings").warning("old")
    assert "old" in output.getvalue()


@pytest.mark.parametrize("text", ["x" * (1 << 20), "a=" * 50_000, "x." * 500_000 + "=1"])
def test_text_of_any_length_is_looked_through_once(text: str) -> None:
    """A client may send such a target: what looked at each part again would hold the event loop for minutes."""
    assert redact(text) == text
