from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from gateway import Gateway, running_gateway
from memory_store import MemoryStore

from visor_gateway.transfer import sendpump


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncGenerator[Gateway, None]:
    async with running_gateway(tmp_path) as running:
        yield running


@pytest.fixture
def store() -> MemoryStore:
    """What stands in for the file store of `faulty`."""
    return MemoryStore("file", block_size=64 * 1024)


@pytest.fixture
async def faulty(tmp_path: Path, store: MemoryStore) -> AsyncGenerator[Gateway, None]:
    """A gateway whose file store fails as it is told."""
    async with running_gateway(tmp_path, stores={"file": store}) as running:
        yield running


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What `sendfile` moved, call by call."""
    calls: list[int] = []
    sendfile = os.sendfile

    def watched(*arguments: int) -> int:
        count = sendfile(*arguments)
        calls.append(count)
        return count

    monkeypatch.setattr(sendpump.os, "sendfile", watched)
    return calls
