"""The stores: each is asked to keep one small object, to give it back and to remove it.

The object's key is like that of any attempt. No record and no lease names it, so what even the end of this process
leaves is removed by the gateway's sweep after a day.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Final

import trio

from ...config import CumulusStore, FileStore, HdfsStore, S3Store, Settings, StoreSettings
from ...errors import ConfigError, GatewayError, ObjectMissing, StoreError, StoreFull, StoreUnreachable
from ...outbound import CONFIGURED, Outbound, OutboundError
from ...store.contract import ServedStore, Store
from ...store.http import HttpStore
from ...stores import StoreTable
from ...wiring import location_policy
from .clock import compared
from .finding import Finding, failed, note, ok

BYTES: Final = 64 * 1024
PROBE_SECONDS: Final = 30.0  # for one store
CLEAN_SECONDS: Final = 15.0  # to remove what a failed probe may have left


async def examine_stores(settings: Settings) -> list[Finding]:
    """Probe every store, all at once. Takes `PROBE_SECONDS` and `CLEAN_SECONDS` at most."""
    found: dict[str, list[Finding]] = {name: [] for name in settings.stores.named}
    try:
        async with (
            Outbound(location_policy(settings)) as references,
            Outbound(CONFIGURED, stall_timeout=PROBE_SECONDS) as servers,
        ):
            stores = StoreTable(settings, HttpStore(references), servers)
            async with trio.open_nursery() as nursery:
                for name, store in stores.items():
                    nursery.start_soon(_examine, store, settings.stores.named[name], servers, found[name])
    except ConfigError as exc:
        return [failed("stores", exc.message, "correct the configuration, or install the extra that it names")]
    return [finding for each in found.values() for finding in each]


async def _examine(store: Store, settings: StoreSettings, servers: Outbound, found: list[Finding]) -> None:
    check = f"store {store.name}"
    try:
        await _look_at(store, settings, servers, found)
    except OSError as exc:
        found.append(failed(check, f"{exc.filename}: {exc.strerror}", "let the gateway's user use it"))


async def _look_at(store: Store, settings: StoreSettings, servers: Outbound, found: list[Finding]) -> None:
    check = f"store {store.name}"
    if not store.writable:
        found.append(note(check, "refers to bytes elsewhere: each location has a server of its own"))
        return
    if isinstance(settings, FileStore) and not await _is_there(settings.directory):
        # To probe it would make it, perhaps in the name of another user than the gateway's.
        found.append(note(check, f"{settings.directory} is not there yet: the gateway makes it"))
        return
    found.append(await _with_tasks(store, settings))
    for endpoint in _endpoints(settings):
        found.append(await _clock(store.name, endpoint, servers))


async def _is_there(path: Path) -> bool:
    """Whether the path exists; True where that can't be told in time, so that the probe says why."""
    with trio.move_on_after(PROBE_SECONDS):
        return await trio.to_thread.run_sync(path.exists, abandon_on_cancel=True)
    return True


async def _with_tasks(store: Store, settings: StoreSettings) -> Finding:
    async with trio.open_nursery() as nursery:
        if isinstance(store, ServedStore):
            await nursery.start(store.serve)
        finding = await probe(store, where=_where(settings))
        nursery.cancel_scope.cancel(reason="probed")
    return finding


async def probe(store: Store, *, where: str) -> Finding:
    """Write, read and delete one object. Whatever happens, it is removed, or said to be left.

    Args:
        store: Its own tasks run, where it has some.
        where: Where its bytes are, for the operator.
    """
    check = f"store {store.name}"
    key = f"{uuid.uuid4()}/{uuid.uuid4()}"
    steps = ["asked"]
    error: str | None = None
    advice = ""
    began = trio.current_time()
    with trio.move_on_after(PROBE_SECONDS) as scope:
        try:
            await _exercise(store, key, steps)
        except GatewayError as exc:
            error, advice = _said(exc), _advice(exc, where)
    if scope.cancelled_caught:
        error, advice = f"no answer within {PROBE_SECONDS:g} s", _advice(StoreUnreachable(""), where)
    if error is None:
        return ok(check, f"{where}: wrote, read and deleted {BYTES} bytes in {trio.current_time() - began:.2f} s")
    if not await _clean(store, key, steps):
        advice += f"; the object {key} may be left, and is removed by the gateway's sweep after a day"
    return failed(check, f"{where}: while it was {steps[-1]}: {error}", advice)


async def _exercise(store: Store, key: str, steps: list[str]) -> None:
    await store.check()
    data = os.urandom(BYTES)
    steps.append("written to")
    stream = await store.open_write(key, size=BYTES)
    try:
        await stream.write(data)
        info = await stream.commit()
    except BaseException:
        with trio.move_on_after(CLEAN_SECONDS, shield=True):
            await stream.abort()
        raise
    steps.append("read")
    reading = await store.open_read(stream.location, expected=info)
    try:
        got = bytearray()
        while block := await reading.receive_some():
            got += block
    finally:
        with trio.move_on_after(CLEAN_SECONDS, shield=True):
            await reading.aclose()
    if got != data:
        raise StoreError("it gave other bytes back than were written")
    steps.append("asked to delete")
    await store.delete(stream.location)
    try:
        await store.stat(stream.location)
    except ObjectMissing:
        return
    raise StoreError("the object is still there after it was deleted")


async def _clean(store: Store, key: str, steps: list[str]) -> bool:
    """Whether nothing is left of the probe."""
    if "written to" not in steps:
        return True
    with trio.move_on_after(CLEAN_SECONDS, shield=True) as scope:
        try:
            await store.abandon(key)
        except GatewayError:
            return False
    return not scope.cancelled_caught


def _said(error: GatewayError) -> str:
    cause = error.__cause__
    return f"{error.message} ({cause})" if isinstance(cause, OutboundError) else error.message


def _advice(error: GatewayError, where: str) -> str:
    if isinstance(error, StoreFull):
        return "make room there, or move the store"
    if isinstance(error, StoreUnreachable):
        return f"is {where} up, does its name resolve, does a firewall stand between, is its certificate trusted?"
    return f"are the keys right, and do they allow to list, get, put and delete in {where}?"


def _where(settings: StoreSettings) -> str:
    if isinstance(settings, S3Store | CumulusStore):
        return f"bucket {settings.bucket} at {settings.endpoint}"
    if isinstance(settings, HdfsStore):
        return f"{settings.directory} at {' or '.join(settings.endpoint)}"
    return str(settings.directory) if isinstance(settings, FileStore) else settings.type


def _endpoints(settings: StoreSettings) -> tuple[str, ...]:
    if isinstance(settings, S3Store | CumulusStore):
        return (settings.endpoint,)
    return settings.endpoint if isinstance(settings, HdfsStore) else ()


async def _clock(store: str, endpoint: str, servers: Outbound) -> Finding:
    """Compare clocks by the answer to a request without credentials, whatever its status."""
    with trio.move_on_after(PROBE_SECONDS):
        try:
            began = time.time()
            async with servers.request("HEAD", endpoint, follow=False) as response:
                return compared(store, response.header("date"), began, time.time())
        except OutboundError:
            pass
    return note("clock", f"not compared with that of the store '{store}': no answer")
