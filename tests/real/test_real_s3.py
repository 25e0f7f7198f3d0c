"""The real daemon with an S3 store that refuses its keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from gateway_process import Gateway
from servers import seaweedfs
from servers.s3_service import S3Service
from store_places import s3_table
from wire import unique


@pytest.fixture
def weed() -> Iterator[S3Service]:
    service = seaweedfs.start()
    yield service
    service.stop()


def test_a_store_that_refuses_its_keys_is_told_and_fails_nothing_else(
    weed: S3Service, start: Callable[..., Gateway]
) -> None:
    refused = s3_table("refused", "s3", weed).replace(weed.secret_key, f"{weed.secret_key}x")
    gateway = start(s3_table("s3", "s3", weed) + refused)
    name = unique("refused")
    answer = gateway.admin.add(b"content", name=name, store="refused")
    assert (answer.status, answer.header("retry-after") is not None) == (503, True)
    assert "refuses the gateway's keys" in answer.message
    assert gateway.admin.named(name)["status"] == "error"
    ready = gateway.client().get("/ready")
    assert (ready.status, ready.json()["stores"]) == (
        200,
        {"file": "ok", "http": "ok", "refused": "failed", "s3": "ok"},
    )
    assert gateway.admin.add(b"content", store="s3").status == 200
