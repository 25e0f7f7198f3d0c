"""Starlette on uvicorn with h11: a plain asyncio application that looks up what the gateway does, and answers it."""

from __future__ import annotations

import secrets
import subprocess
from pathlib import Path

from .peer import Absent, Peer
from .process import ServerProcess

_TOKEN = secrets.token_urlsafe()
_APPLICATION = Path(__file__).parent / "programs" / "starlette_images.py"


class Starlette(Peer):
    """The application in `programs/starlette_images.py`, from a virtual environment of its own."""

    name = "Starlette on uvicorn (h11)"
    log = "--access-log"

    def __init__(self, directory: Path, place: Path) -> None:
        self._place = place
        super().__init__(directory)

    def start(self) -> ServerProcess:
        python = self._place / "bin" / "python"
        if not (self._place / "bin" / "uvicorn").exists():
            raise Absent(f"not installed: make a virtual environment {self._place} with uvicorn, h11 and starlette")
        options = f"--app-dir {_APPLICATION.parent} --port {self.port} --http h11 --loop asyncio {self.log}".split()
        command = [str(python), "-m", "uvicorn", "starlette_images:app", *options]
        environ = {"IMAGES": str(self.directory / "images.sqlite3"), "TOKEN": _TOKEN}
        return ServerProcess(command, self.directory / "log", environ)

    @property
    def authorization(self) -> dict[str, str]:
        """For requests that need a user."""
        return {"Authorization": f"Bearer {_TOKEN}"}

    def version(self) -> str:
        code = "import starlette, uvicorn, h11; print(starlette.__version__, uvicorn.__version__, h11.__version__)"
        said = subprocess.run([self._place / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
        return "Starlette {}, uvicorn {}, h11 {}".format(*said.stdout.split())


class QuietStarlette(Starlette):
    """The same without a line in the log for every request."""

    name = "Starlette, no access log"
    log = "--no-access-log"
