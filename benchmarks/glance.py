"""OpenStack Glance without Keystone: SQLite, file store, uWSGI with two processes of four threads."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from . import control
from .machine import BOTH_CORES, SERVER_CORE
from .peer import Absent, Peer, Target
from .process import ServerProcess

PLACE: Path = Path("/opt/bench-peers/glance")
_CONFIG: Final = """\
[DEFAULT]
log_file = {directory}/api.log
worker_self_reference_url = http://127.0.0.1:{port}
enabled_backends = files:file
node_staging_uri = file://{directory}/staging
[database]
connection = sqlite:///{directory}/glance.sqlite
[glance_store]
default_backend = files
[files]
filesystem_store_datadir = {directory}/images
[os_glance_tasks_store]
filesystem_store_datadir = {directory}/tasks
[os_glance_staging_store]
filesystem_store_datadir = {directory}/staging
[paste_deploy]
flavor =
config_file = {directory}/glance-api-paste.ini
[oslo_policy]
enforce_scope = false
enforce_new_defaults = false
policy_file = {directory}/policy.yaml
[oslo_concurrency]
lock_path = {directory}/tasks
"""
#: How uWSGI is told to serve it: HTTP of its own, bodies of any coding, answers that end with the connection.
_UWSGI: Final = """
--master --die-on-term --processes 2 --threads 4 --enable-threads --lazy-apps --need-app --thunder-lock
--disable-logging --http-chunked-input --buffer-size 65535 --module glance.wsgi.api:application
"""


class Glance(Peer):
    """Glance as its packages have it, from a virtual environment of its own."""

    name = "Glance"
    status = "/healthcheck"
    cores: Collection[int] = (SERVER_CORE,)

    def __init__(self, directory: Path, place: Path) -> None:
        self._place = place
        self._images: dict[Path, Target] = {}
        self._uploaded: list[str] = []
        super().__init__(directory)

    def start(self) -> ServerProcess:
        programs = self._place / "bin"
        if not (programs / "uwsgi").exists() or not (programs / "glance-manage").exists():
            raise Absent(f"not installed: make a virtual environment {self._place} with glance and uwsgi")
        for name in ("images", "staging", "tasks"):
            (self.directory / name).mkdir()
        self._configure()
        environ = {"OS_GLANCE_CONFIG_DIR": str(self.directory)}
        config = ["--config-file", str(self.directory / "glance-api.conf")]
        made = subprocess.run([programs / "glance-manage", *config, "db_sync"], capture_output=True, check=False)
        if made.returncode:
            raise Absent(f"its database can't be made: {made.stderr.decode(errors='replace').strip()[-200:]}")
        listen = ["--http-socket", f"127.0.0.1:{self.port}", "--virtualenv", str(self._place)]
        close = ["--add-header", "Connection: close"]
        command = [str(programs / "uwsgi"), *listen, *_UWSGI.split(), *close]
        return ServerProcess(command, self.directory / "log", environ, cores=self.cores)

    def _configure(self) -> None:
        shipped = self._place / "etc" / "glance" / "glance-api-paste.ini"
        (self.directory / shipped.name).write_text(shipped.read_text())
        (self.directory / "glance-api.conf").write_text(_CONFIG.format(directory=self.directory, port=self.port))
        (self.directory / "policy.yaml").write_text(self._open_policy())

    def _open_policy(self) -> str:
        """Every rule open: without Keystone nobody has a role."""
        command = [str(self._place / "bin" / "oslopolicy-sample-generator"), "--namespace", "glance"]
        sample = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rules = {line.lstrip("#").split('"')[1] for line in sample.splitlines() if line.startswith(('"', '#"'))}
        return "".join(f'"{rule}": ""\n' for rule in sorted(rules))

    def version(self) -> str:
        command = [
            str(self._place / "bin" / "python"),
            "-c",
            "from importlib.metadata import version as v; print(v('glance'), v('uwsgi'))",
        ]
        words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return "Glance {} on uWSGI {}".format(*words)

    def create(self, name: str) -> str:
        """A record without bytes; its id."""
        fields = {"name": name, "disk_format": "raw", "container_format": "bare", "visibility": "public"}
        return str(self._send("POST", "/v2/images", fields)["id"])

    def _send(self, method: str, path: str, document: dict[str, Any]) -> Any:
        body = json.dumps(document).encode()
        headers = {"Content-Type": "application/json"}
        return control.request(self.port, method, path, headers=headers, body=body).json()

    def add(self, name: str, file: Path) -> str:
        """Upload an image; its id."""
        image_id = self.create(name)
        control.send_file(self.port, "PUT", f"/v2/images/{image_id}/file", file, {})
        return image_id

    def image(self, file: Path) -> Target:
        if file not in self._images:
            self._images[file] = Target(f"/v2/images/{self.add(file.name, file)}/file")
        return self._images[file]

    def uploads(self, file: Path, count: int) -> list[Target]:
        made = [self.create("uploaded") for _ in range(count)]
        self._uploaded += made
        return [Target(f"/v2/images/{image_id}/file", method="PUT") for image_id in made]

    def clean_uploads(self) -> None:
        for image_id in self._uploaded:
            control.request(self.port, "DELETE", f"/v2/images/{image_id}")
        self._uploaded.clear()


class FreeGlance(Glance):
    """The same, free to use two cores."""

    name = "Glance, two cores"
    cores = BOTH_CORES
