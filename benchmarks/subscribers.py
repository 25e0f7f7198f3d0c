"""Subscribers of the live channel: what a thousand cost pulls, and whether all hear of ten thousand short transfers."""

from __future__ import annotations

import http.client
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from .clients import ClientFailed, Figures, Probe
from .gateway import FreeGateway, Gateway, TwoWorkersGateway
from .machine import BOTH_CORES, pinned
from .pulls import pull
from .rounds import Contender, Table, alternate
from .stand import Stand, present

CROWD: Final = 1000
STREAMS: Final = 8
PACE: Final = 40_000_000  # bytes per second of each pull where they are limited
_PACED_MIB: Final = 480  # twelve seconds
#: As long at about 8 GB/s. A transfer that lasted a second only would have more events than progress to tell.
_FREE_MIB: Final = 3072
_FREE_REPEATS: Final = 4

CHURN_CROWD: Final = 50
TRANSFERS: Final = 10_000
CHURN_SECONDS: Final = 60.0
CONNECTIONS: Final = 8
CUTS: Final = 2.0  # connections of subscribers that break each second
SETTLE_SECONDS: Final = 30.0
_OPEN_SECONDS: Final = 60.0


class Crowd(Probe):
    """Subscribers in a process of their own."""

    def __init__(self, gateway: Gateway, count: int, cuts: float = 0.0) -> None:
        with pinned(*BOTH_CORES):
            words = [str(gateway.port), gateway.token, str(count), str(cuts)]
            super().__init__([sys.executable, "-m", "benchmarks.crowd", *words])
        self.wait_ready(_OPEN_SECONDS)


# --- what they cost ------------------------------------------------------------------------------


def _pulled(stand: Stand, gateway: Gateway, file: Path, repeats: int, subscribers: int) -> Figures:
    """Eight pulls, while so many follow them at 2 Hz."""
    crowd = Crowd(gateway, subscribers)
    try:
        before = gateway.process.cpu()
        figures = pull(stand, gateway, file, STREAMS, repeats)
        used = gateway.process.cpu() - before
    finally:
        told = crowd.finish()
    closed = [each["closed"] for each in told["records"] if each["closed"] is not None]
    if closed:
        raise ClientFailed(f"{len(closed)} subscribers were closed: {Counter(closed)}")
    messages = sum(told["messages"].values())
    return {**figures, "cores": used / figures["seconds"], "messages": messages, "beside_cpu": told["cpu"]}


def _alone(stand: Stand, gateway: Gateway, file: Path, repeats: int) -> Figures:
    before = gateway.process.cpu()
    figures = pull(stand, gateway, file, STREAMS, repeats)
    return {**figures, "cores": (gateway.process.cpu() - before) / figures["seconds"]}


def _limited(gateway: Gateway, bytes_per_s: int | None) -> None:
    gateway.send_json("PATCH", "/limits", {"limit_bytes_per_s": bytes_per_s})


def workloads(stand: Stand) -> Iterator[Table]:
    """Eight pulls with and without a thousand subscribers: as fast as a network, and as fast as they can."""
    crowd = max(1, round(CROWD * min(1.0, stand.options.scale * 10)))
    for gateway in present(stand.find(FreeGateway), stand.find(TwoWorkersGateway)):
        for key, title, mib, repeats, limit in (
            ("paced", f"{STREAMS * PACE / 1e6:.0f} MB/s together", _PACED_MIB, 1, STREAMS * PACE),
            ("free", "as fast as they can", _FREE_MIB, _FREE_REPEATS, None),
        ):
            file = stand.file(mib)
            gateway.image(file)
            _limited(gateway, limit)
            contenders = [
                Contender(gateway, partial(_alone, stand, gateway, file, repeats), label="nobody"),
                Contender(
                    gateway, partial(_pulled, stand, gateway, file, repeats, crowd), label=f"{crowd} subscribers"
                ),
            ]
            workers = "one process" if gateway.workers == 1 else f"{gateway.workers} workers"
            try:
                yield alternate(
                    f"subscribers-{key}-{gateway.workers}",
                    f"{STREAMS} pulls, {title}, and who follows them at 2 Hz: {workers}",
                    contenders,
                    stand.options,
                )
            finally:
                _limited(gateway, None)


# --- whether they hear ---------------------------------------------------------------------------


class _Client(threading.Thread):
    """One connection that pulls an image again and again, each time under an id of its own."""

    def __init__(self, gateway: Gateway, path: str, ids: list[str], due: Callable[[int], float], first: int) -> None:
        super().__init__(name=f"client-{first}")
        self._gateway, self._path, self._ids, self._due, self._first = gateway, path, ids, due, first
        self.failure: str | None = None

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._gateway.port, timeout=60)
        try:
            for number in range(self._first, len(self._ids), CONNECTIONS):
                time.sleep(max(0.0, self._due(number) - time.monotonic()))
                connection.request(
                    "GET", self._path, headers={**self._gateway.authorization, "X-Transfer-Id": self._ids[number]}
                )
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    self.failure = f"a pull was answered {answer.status}"
        except (OSError, http.client.HTTPException) as why:
            self.failure = repr(why)
        finally:
            connection.close()


def _churned(stand: Stand, gateway: Gateway, small: Path) -> Figures:
    """Make so many short transfers in a minute, and look at what every subscriber was told.

    Raises:
        ClientFailed: One of them was told less, more, or in another order than the contract says.
    """
    count = max(100, round(TRANSFERS * stand.options.scale))
    seconds = CHURN_SECONDS * count / TRANSFERS
    path, ids = gateway.image(small).path, [str(uuid.uuid4()) for _ in range(count)]
    crowd = Crowd(gateway, CHURN_CROWD, CUTS)
    try:
        before, began = gateway.process.cpu(), time.monotonic()
        clients = [
            _Client(gateway, path, ids, lambda number: began + number * seconds / count, first)
            for first in range(CONNECTIONS)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        took, used = time.monotonic() - began, gateway.process.cpu() - before
        _settle(gateway)
        listed = {each["id"] for each in gateway.send_json("GET", "/transfers", None)["transfers"]}
    finally:
        told = crowd.finish()
    for client in clients:
        if client.failure:
            raise ClientFailed(client.failure)
    faults = [
        f"subscriber {n}: {fault}" for n, each in enumerate(told["records"]) for fault in _faults(each, ids, listed)
    ]
    if faults:
        raise ClientFailed(f"{len(faults)} faults: {'; '.join(faults[:5])}")
    return {
        "requests": count,
        "seconds": took,
        "client_cpu": 0.0,
        "cores": used / took,
        "messages": sum(told["messages"].values()),
        "gaps": sum(each["gaps"] for each in told["records"]),
        "cuts": sum(each["cuts"] for each in told["records"]),
    }


def _settle(gateway: Gateway) -> None:
    """Wait until everything has ended, and until subscribers were given the time for a last delta."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while gateway.send_json("GET", "/transfers", None)["transfers"] and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(2.0)


def _faults(record: dict[str, Any], ids: list[str], listed: set[str]) -> Iterator[str]:
    """What one subscriber was told wrongly."""
    ended = Counter(record["ends"])
    if record["closed"] is not None:
        yield f"closed with {record['closed']}"
    if record["again"] or any(times > 1 for times in ended.values()):
        yield f"{record['again']} ends told twice"
    if record["disorder"]:
        yield f"{record['disorder']} messages out of order"
    missing = sum(1 for id in ids if not ended[id])
    if missing and not record["gaps"]:
        yield f"{missing} ends not told, without a gap"
    if set(record["live"]) != listed:
        yield f"{len(set(record['live']) ^ listed)} transfers under way that the gateway does not list, or the reverse"


def churn(stand: Stand) -> Iterator[Table]:
    """Ten thousand short transfers in a minute before fifty subscribers, whose connections break in turn."""
    small = stand.directory / "small-image"
    small.write_bytes(bytes(1024))
    contenders = [
        Contender(
            gateway,
            partial(_churned, stand, gateway, small),
            label="one process" if gateway.workers == 1 else f"{gateway.workers} workers",
        )
        for gateway in present(stand.find(FreeGateway), stand.find(TwoWorkersGateway))
    ]
    title = f"{TRANSFERS} pulls of 1 KiB in a minute, all ends told to {CHURN_CROWD} subscribers"
    yield alternate("churn", title, contenders, stand.options)
