"""`--workers N` has every daemon that a test starts serve with N workers, unless the test says how many; with
`--postgresql` its records are in a PostgreSQL server that runs as long as the tests. With `--haproxy N` clients reach
each through HAProxy, and the gateway that tests of conformance share is N of them on one PostgreSQL and one S3.

`VISOR_REQUIRE_ALL=1` (continuous integration sets it) turns every skip into a failure."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Generator, Iterator
from typing import Any

import gateway_process
import hypothesis
import pytest
import structlog
from canary import canary
from servers import haproxy, hdfs, postgresql, systemd

from visor_gateway import log

_REQUIRE_ALL = os.environ.get("VISOR_REQUIRE_ALL", "") not in ("", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--workers", type=int, default=1, help="Workers of the daemons that tests start.")
    parser.addoption("--postgresql", action="store_true", help="Records of these daemons are in PostgreSQL.")
    parser.addoption(
        "--haproxy",
        type=int,
        default=0,
        help="Clients reach them through HAProxy, and that of a whole session is so many on PostgreSQL and S3.",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts us in the background has us ignore it, and whatever we start would ignore it, too.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # How long an example takes tells of the machine, and of what else it does.
    slow = [hypothesis.HealthCheck.too_slow]
    # The same examples in every run, so that a run tells of the change that it tests.
    hypothesis.settings.register_profile("any machine", deadline=None, derandomize=True, suppress_health_check=slow)
    hypothesis.settings.load_profile("any machine")
    gateway_process.defaults.workers = config.getoption("--workers")
    if config.getoption("--haproxy"):
        gateway_process.defaults.front = haproxy.before
    if config.getoption("--postgresql"):
        server = postgresql.start()
        config.add_cleanup(server.stop)
        gateway_process.defaults.database = server.url_for


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if _REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"Nothing may be skipped here: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.fixture
def postgresql_of_its_own() -> Iterator[postgresql.PostgreSQL]:
    """A server that a test may kill."""
    server = postgresql.start()
    try:
        yield server
    finally:
        server.stop()


class _Log(io.TextIOBase):
    """Where the log of gateways in this process goes."""

    def write(self, text: str) -> int:
        canary.look("a log", text)
        return len(text)


@pytest.fixture(autouse=True)
def no_secret_is_seen(request: pytest.FixtureRequest) -> Iterator[None]:
    """Look through what gateways give out: see canary.py. A test whose gateway lets out a secret fails here."""
    directory = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    log.configure("info", "text", stream=_Log())
    structlog.configure(cache_logger_on_first_use=False)  # tests configure it again
    yield
    if directory is not None:
        canary.look_through_databases(directory)
    canary.check()


@pytest.fixture(scope="session")
def hdfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hdfs.Hdfs]:
    """A Hadoop file system that all tests share: it takes seconds to start."""
    with hdfs.start(tmp_path_factory.mktemp("hadoop")) as running:
        yield running


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[systemd.Machine]:
    """A system under systemd with the gateway and its units installed, which all tests share."""
    with systemd.boot(tmp_path_factory.mktemp("machine"), systemd.mounts()) as booted:
        systemd.install(booted)
        systemd.select_version(booted)
        systemd.install_units(booted)
        yield booted
