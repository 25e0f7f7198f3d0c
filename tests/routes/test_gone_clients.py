"""Clients that leave before they have their answer."""

from __future__ import annotations

import pytest
from gateway import Gateway
from structlog.testing import capture_logs


@pytest.mark.parametrize("target", ["/transfers", "/users"])
async def test_a_client_that_left_is_no_failure_of_the_gateway(gateway: Gateway, target: str) -> None:
    headers = gateway.signed("GET", target)
    with capture_logs() as logs:
        reply = await gateway.raw("GET", target, headers, [], gone=True)
    assert [(entry["log_level"], entry["event"]) for entry in logs] == [("info", "client gone")]
    assert (reply.status, reply.was_reset) == (0, True)
