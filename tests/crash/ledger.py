"""What clients were told before a crash, and what must therefore hold after it."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from dataclasses import dataclass, field

from gateway_process import Gateway, store_files
from wire import Client, eventually


@dataclass
class Entry:
    """One image as its client knows it.

    Attributes:
        data: The bytes that were sent, or begun to be.
        kept: Whether the gateway acknowledged them.
        deleting: Whether a delete was asked for.
        gone: Whether the gateway acknowledged the delete.
    """

    name: str
    data: bytes
    image_id: str | None = None
    kept: bool = False
    deleting: bool = False
    gone: bool = False


@dataclass
class Ledger:
    """Everything that was asked of a gateway over its crashes."""

    entries: dict[str, Entry] = field(default_factory=dict)
    pulled: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, name: str, data: bytes) -> Entry:
        with self.lock:
            entry = self.entries[name] = Entry(name, data)
        return entry

    def check(self, gateway: Gateway, *, everything: bool = False) -> None:
        """Hold a restarted gateway to the ledger.

        Args:
            everything: Pull every image again, not just those that were not pulled since they came.
        """
        client = gateway.admin
        listed = records(client)
        assert set(listed) <= set(self.entries), "an image that nobody asked for"
        available = {}
        for name, entry in self.entries.items():
            record = listed.get(name)
            if entry.kept and not entry.deleting:
                assert record is not None, f"{name} was acknowledged and is lost"
                assert record["status"] == "available", (name, record)
            if entry.gone:
                assert record is None, f"{name} was deleted and is back"
            if record is None:
                continue
            assert record["status"] in ("available", "error", "locked"), (name, record)
            if record["status"] == "available":
                assert record["size"] == len(entry.data), (name, record)
                assert record["checksum"] == hashlib.sha256(entry.data).hexdigest(), name
                available[record["_id"]] = entry
            else:
                assert record["size"] is None, record
                assert record["checksum"] is None, record
                answer = client.get(f"/images/{record['_id']}")
                assert (answer.status, answer.body) == (200, b"") or answer.status == 409
        for image_id, entry in available.items():
            if everything or image_id not in self.pulled:
                assert client.get(f"/images/{image_id}").body == entry.data, entry.name
                self.pulled.add(image_id)
        self._check_files(gateway, available)
        for name in [name for name, entry in self.entries.items() if name not in listed and entry.deleting]:
            del self.entries[name]

    def _check_files(self, gateway: Gateway, available: dict[str, Entry]) -> None:
        """No file that no record names, no partial object: one file an image, of its size."""

        def orphans() -> list[str]:
            wrong = []
            for path in store_files(gateway):
                owner = next((image_id for image_id in available if image_id in str(path)), None)
                with contextlib.suppress(FileNotFoundError):  # the sweep was faster
                    if path.stat().st_size != (len(available[owner].data) if owner else None):
                        wrong.append(str(path))
            return wrong

        # A delete that a crash interrupted is finished by the sweep, soon after the start.
        eventually(lambda: not orphans(), what=f"a store without orphans, such as {orphans()[:3]}")
        assert len(store_files(gateway)) == len(available)


def records(client: Client) -> dict[str, dict]:
    """Every record, by name."""
    found: dict[str, dict] = {}
    target = "/images/detail?limit=1000"
    while target:
        answer = client.get(target)
        if answer.status == 404:
            return found
        assert answer.status == 200, answer.body
        found |= {image["name"]: image for image in answer.json()["images"]}
        link = answer.header("link")
        target = link.partition(">")[0].removeprefix(f"<{client.url}") if link else ""
    return found
