"""A real Hadoop HDFS, NameNode and DataNode, on loopback, in a throw-away directory.

It needs Java and the jars that `.ci/hadoop DIR` collects; `VISOR_HADOOP` names that directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest

START_SECONDS = 60.0
BLOCK_SIZE = 4 << 20  # small, so that an object has several blocks

# Hadoop 2.7 is older than the modules of Java.
_OPENED = (
    "java.base/java.lang",
    "java.base/java.lang.reflect",
    "java.base/java.net",
    "java.base/java.nio",
    "java.base/sun.nio.ch",
    "java.security.jgss/sun.security.krb5",
)
_JAVA = (
    "java",
    "-Djava.net.preferIPv4Stack=true",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    *(word for module in _OPENED for word in ("--add-opens", f"{module}=ALL-UNNAMED")),
    "--add-exports",
    "java.security.jgss/sun.security.krb5=ALL-UNNAMED",
)
_HDFS = "org.apache.hadoop.hdfs"
_LOG4J = """log4j.rootLogger=WARN,c
log4j.appender.c=org.apache.log4j.ConsoleAppender
log4j.appender.c.target=System.err
log4j.appender.c.layout=org.apache.log4j.PatternLayout
log4j.appender.c.layout.ConversionPattern=%d{ISO8601} %p %c{2}: %m%n
"""


class Hdfs:
    """A running file system.

    Attributes:
        url: The NameNode's http address.
        datanode_port: Of the DataNode's http address, to which the NameNode redirects.
        user: The superuser, who owns everything.
    """

    user = "visor"

    def __init__(self, directory: Path, jars: Path) -> None:
        self._directory = directory
        self._jars = jars
        self._processes: list[subprocess.Popen[bytes]] = []
        ports = _free_ports(5)
        self.url = f"http://127.0.0.1:{ports[0]}"
        self._rpc = ports[1]
        self.datanode_port = ports[2]
        self._configure(ports)

    def start(self) -> None:
        """Format and start. Returns when a DataNode is there."""
        self._run(f"{_HDFS}.server.namenode.NameNode", "-format", "-nonInteractive")
        self._launch("server.namenode.NameNode")
        self.start_datanode()

    def start_datanode(self) -> None:
        """Start the DataNode. Returns when the NameNode knows it."""
        self._launch("server.datanode.DataNode")
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            assert time.monotonic() < deadline, self._logs()
            assert all(process.poll() is None for process in self._processes), self._logs()
            time.sleep(0.1)

    def kill_datanode(self) -> None:
        process = self._processes.pop()
        process.kill()
        process.wait(60)

    def _launch(self, daemon: str) -> None:
        with (self._directory / f"{daemon}.log").open("ab") as log:
            process = subprocess.Popen(self._command(f"{_HDFS}.{daemon}"), env=self._environment(), stderr=log)
        self._processes.append(process)

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait(60)

    def call(self, method: str, operation: str, path: str, **parameters: str) -> Any:
        """A WebHDFS call to the NameNode by the superuser; None for what is not there."""
        query = urllib.parse.urlencode({"op": operation, "user.name": self.user, **parameters})
        request = urllib.request.Request(f"{self.url}/webhdfs/v1{urllib.parse.quote(path)}?{query}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def walk(self, path: str) -> Iterator[tuple[str, str, int]]:
        """Path, `FILE` or `DIRECTORY`, and length or number of entries, of all below a directory."""
        listing = self.call("GET", "LISTSTATUS", path)
        for status in listing["FileStatuses"]["FileStatus"] if listing else ():
            below = f"{path.rstrip('/')}/{status['pathSuffix']}"
            is_file = status["type"] == "FILE"
            yield below, status["type"], status["length"] if is_file else status["childrenNum"]
            if not is_file:
                yield from self.walk(below)

    def remove(self, path: str) -> None:
        """Remove a directory with all that is in it."""
        self.call("DELETE", "DELETE", path, recursive="true")

    def administer(self, *words: str) -> None:
        """`hdfs dfsadmin`, such as `-safemode enter`. Takes a second or two."""
        self._run(f"{_HDFS}.tools.DFSAdmin", *words)

    def _configure(self, ports: list[int]) -> None:
        here = self._directory
        (here / "conf").mkdir(parents=True)
        for application in ("hdfs", "datanode", "static", "secondary"):
            # A NameNode serves these pages, and does not start without them.
            (here / "web/webapps" / application / "WEB-INF").mkdir(parents=True)
            (here / "web/webapps" / application / "WEB-INF/web.xml").write_text("<web-app/>")
        (here / "conf/log4j.properties").write_text(_LOG4J)
        _write_properties(here / "conf/core-site.xml", {
            "fs.defaultFS": f"hdfs://127.0.0.1:{self._rpc}",
            "hadoop.tmp.dir": here / "tmp",
            "hadoop.http.staticuser.user": self.user,
            "io.native.lib.available": "false",
            "hadoop.security.group.mapping": "org.apache.hadoop.security.ShellBasedUnixGroupsMapping",
        })  # fmt: skip
        _write_properties(here / "conf/hdfs-site.xml", {
            "dfs.replication": 1,
            "dfs.blocksize": BLOCK_SIZE,
            "dfs.namenode.fs-limits.min-block-size": 1 << 20,
            "dfs.namenode.name.dir": f"file://{here}/nn",
            "dfs.datanode.data.dir": f"file://{here}/dn",
            "dfs.namenode.http-address": f"127.0.0.1:{ports[0]}",
            "dfs.datanode.http.address": f"127.0.0.1:{ports[2]}",
            "dfs.datanode.address": f"127.0.0.1:{ports[3]}",
            "dfs.datanode.ipc.address": f"127.0.0.1:{ports[4]}",
            "dfs.datanode.hostname": "127.0.0.1",
            "dfs.webhdfs.enabled": "true",
            "dfs.permissions.enabled": "true",
            "dfs.namenode.safemode.extension": 0,
            "dfs.namenode.datanode.registration.ip-hostname-check": "false",
            "dfs.heartbeat.interval": 1,
        })  # fmt: skip

    def _command(self, name: str, *words: str) -> list[str]:
        path = [self._directory / "conf", self._directory / "web", *sorted(self._jars.glob("*.jar"))]
        return [*_JAVA, "-Xmx256m", "-cp", ":".join(map(str, path)), name, *words]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "HADOOP_USER_NAME": self.user}

    def _run(self, name: str, *words: str) -> None:
        done = subprocess.run(
            self._command(name, *words), env=self._environment(), capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]

    def _is_ready(self) -> bool:
        """Whether the DataNode has joined. To the NameNode alone one that was killed seems to live for minutes."""
        with contextlib.suppress(OSError, ValueError, LookupError):
            alive = _bean(self.url, "Hadoop:service=NameNode,name=FSNamesystemState")["NumLiveDataNodes"]
            node = _bean(f"http://127.0.0.1:{self.datanode_port}", "Hadoop:service=DataNode,name=DataNodeInfo")
            joined = json.loads(node["NamenodeAddresses"])
            return bool(alive and joined and all(joined.values()))
        return False

    def _logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in self._directory.glob("*.log"))


@contextmanager
def start(directory: Path) -> Generator[Hdfs, None, None]:
    """Start HDFS with its files in `directory`, and stop it at the end; skip the test where it is not installed."""
    if shutil.which("java") is None:
        pytest.skip("java is not installed")
    jars = Path(os.environ.get("VISOR_HADOOP") or "/nowhere", "jars")
    if not any(jars.glob("hadoop-hdfs-*.jar")):
        pytest.skip("VISOR_HADOOP names no directory that .ci/hadoop filled")
    server = Hdfs(directory, jars)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _bean(url: str, name: str) -> dict[str, Any]:
    """What a daemon says of itself."""
    with urllib.request.urlopen(f"{url}/jmx?qry={name}", timeout=60) as answer:
        return json.load(answer)["beans"][0]  # type: ignore[no-any-return]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _write_properties(path: Path, values: Mapping[str, object]) -> None:
    lines = [
        f"<property><name>{name}</name><value>{escape(str(value))}</value></property>" for name, value in values.items()
    ]
    path.write_text(f"<configuration>{''.join(lines)}</configuration>")
