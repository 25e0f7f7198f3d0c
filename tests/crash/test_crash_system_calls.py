"""The daemon under strace: what is durable before the answer leaves, and a kill at each system call on the way."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

import pytest
from gateway_process import Gateway, launch
from ledger import Ledger
from tracing import completed, traced
from wire import Reset, Short, unique


def first(calls: list[str], pattern: str, after: int = -1) -> int:
    """Index of the first call behind `after` that matches."""
    for index in range(after + 1, len(calls)):
        if re.search(pattern, calls[index]):
            return index
    raise AssertionError(f"no {pattern} behind {after} in\n" + "\n".join(calls))


SYNC = r"^f(data)?sync\(\d+<[^>]*{}[^>]*>\) += 0"
CALLS = "fsync,fdatasync,link,linkat,rename,renameat,renameat2,unlink,unlinkat,sendto,sendmsg,write,writev"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_bytes_name_and_record_are_on_the_disk_before_the_200_leaves(tmp_path: Path, framing) -> None:
    gateway = launch(tmp_path)
    try:
        with traced(gateway, tmp_path / "trace", "-e", f"trace={CALLS}"):
            data = b"durable bytes" * 10_000
            body = data if framing == "length" else [data[:50_000], data[50_000:]]
            image = gateway.admin.add(body).image
            # What a delete answers is durable too.
            mark = len(completed(tmp_path / "trace"))
            assert gateway.admin.delete(f"/images/{image['_id']}").status == 200
        calls = completed(tmp_path / "trace")
    finally:
        gateway.kill()
    images = re.escape(str(gateway.data_dir / "images"))
    written = first(calls, SYNC.format(images))
    named = first(calls, r"^(link|linkat|rename|renameat|renameat2)\(.*" + images + r".*\) += 0", written)
    listed = first(calls, SYNC.format(images), named)
    recorded = first(calls, SYNC.format(r"sqlite3-wal"), listed)
    answered = first(calls, r'^(sendto|sendmsg|write|writev)\(.*"HTTP/1\.1 200', written)
    assert written < named < listed < recorded < answered, "\n".join(calls)
    removed = first(calls, r'^(sendto|sendmsg|write|writev)\(.*"HTTP/1\.1 200', max(answered, mark - 1))
    assert first(calls, SYNC.format(r"sqlite3-wal"), answered) < removed, "\n".join(calls)


POINTS = [
    *(("fsync", number) for number in range(1, 4)),
    *(("fdatasync", number) for number in range(1, 7)),
    *(("link,linkat", number) for number in range(1, 3)),
    *(("unlink,unlinkat", number) for number in range(1, 5)),
    ("ftruncate,fallocate", 1),
    *(("rmdir,mkdir,mkdirat", number) for number in range(1, 3)),
]


def exercise(gateway: Gateway, ledger: Ledger) -> None:
    """An upload, a refused one and a delete, until the daemon dies."""
    client = gateway.admin
    with contextlib.suppress(OSError, Reset, Short):
        for _ in range(2):
            entry = ledger.begin(unique("point"), b"bytes to keep" * 5000)
            answer = client.add(entry.data, name=entry.name)
            entry.image_id, entry.kept = answer.image["_id"], True
        refused = ledger.begin(unique("refused"), b"bytes to refuse" * 5000)
        assert client.add(refused.data, [("Content-MD5", "AAAAAAAAAAAAAAAAAAAAAA==")], name=refused.name).status == 400
        entry.deleting = True
        assert client.delete(f"/images/{entry.image_id}").status == 200
        entry.gone = True


@pytest.mark.timeout(1200)
def test_a_kill_at_each_system_call_of_an_upload_and_a_delete_leaves_no_orphan(tmp_path: Path) -> None:
    ledger = Ledger()
    hits = 0
    gateway = launch(tmp_path)
    try:
        for number, (call, when) in enumerate(POINTS):
            print(f"kill at {call} {when}")
            inject = f"inject={call}:signal=KILL:when={when}"
            with traced(gateway, tmp_path / f"trace{number}", "-e", f"trace={call}", "-e", inject):
                exercise(gateway, ledger)
                deadline = time.monotonic() + 0.2
                while gateway.is_running() and time.monotonic() < deadline:
                    time.sleep(0.01)
                hits += not gateway.is_running()
            gateway.kill()
            gateway = launch(tmp_path)
            ledger.check(gateway)
        ledger.check(gateway, everything=True)
        assert hits >= 12, "the kills did not meet the work"
    finally:
        gateway.kill()
