"""Commands in this process, and a gateway of scripts that they find by themselves."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fake_gateway import FakeGateway, Script, Serve, gateway


@pytest.fixture
def portal() -> Generator[BlockingPortal]:
    with start_blocking_portal("trio") as portal:
        yield portal


@pytest.fixture
def serve(portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch) -> Generator[Serve]:
    """Serve scripts, and let commands find them."""
    opened = []

    def begin(*scripts: Script) -> FakeGateway:
        context = portal.wrap_async_context_manager(gateway(*scripts))
        opened.append(context)
        fake = context.__enter__()
        monkeypatch.setenv("VISOR_URL", fake.url)
        return fake

    yield begin
    for context in opened:
        context.__exit__(None, None, None)


@pytest.fixture
def with_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands act under a token."""
    monkeypatch.setenv("VISOR_TOKEN", "t0ken")
