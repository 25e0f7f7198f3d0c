"""What a handler of a role for other servers gets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from .entity import Headers
from .peers import Peer
from .request import Answer, Services, Text, parsed_query
from .status import readiness
from .table import Kind, Policy, Route


class RoleRequest(msgspec.Struct, kw_only=True):
    """One request.

    Attributes:
        params: Path parameters.
        headers: As received, names in lower case.
        base_url: Scheme and authority under which the images of records are to be had.
        body: The whole body.
    """

    services: Services
    peer: Peer
    params: dict[str, str]
    query_string: bytes
    headers: Headers
    base_url: str
    body: bytes = b""

    @property
    def query(self) -> list[tuple[str, str]]:
        """Query parameters. Raises as `parsed_query`."""
        return parsed_query(self.query_string)

    def image_uri(self, image_id: str) -> str:
        """The absolute URL of an image."""
        return f"{self.base_url}/images/{image_id}"


def route(
    method: str,
    path: str,
    policy: Policy,
    handler: Callable[[RoleRequest], Awaitable[Answer | Text]],
    summary: str,
    *statuses: int,
) -> Route:
    """One line of a role's table."""
    return Route(
        method=method,
        path=path,
        policy=policy,
        handler=handler,
        summary=summary,
        kind=Kind.HOT,
        statuses=statuses or (200,),
    )


async def status(request: RoleRequest) -> Text:
    """GET /status"""
    return Text(b"OK", "text/plain; charset=utf-8")


async def ready(request: RoleRequest) -> Answer:
    """GET /ready"""
    return await readiness(request.services)
