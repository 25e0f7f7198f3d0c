"""The gateway's routes (docs/protocol.md)."""

from __future__ import annotations

import functools
from typing import Final

import msgspec

from ..transfer import schema
from . import (
    cache,
    copies,
    dashboard,
    history,
    images,
    limits,
    live,
    openapi,
    pulls,
    pushes,
    scrub,
    shared_view,
    status,
    transfers,
    users,
)
from .request import Request, Text
from .table import Kind, Policy, Route


def _route(
    method: str, path: str, policy: Policy, handler: object, summary: str, *statuses: int, kind: Kind = Kind.CONTROL
) -> Route:
    return Route(
        method=method,
        path=path,
        policy=policy,
        handler=handler,  # type: ignore[arg-type]
        summary=summary,
        kind=kind,
        statuses=statuses or (200,),
    )


def _hot(path: str, policy: Policy, handler: object, summary: str, *statuses: int) -> Route:
    return _route("GET", path, policy, handler, summary, *statuses, kind=Kind.HOT)


def _bytes(method: str, path: str, policy: Policy, handler: object, summary: str, *statuses: int) -> Route:
    return _route(method, path, policy, handler, summary, *statuses, kind=Kind.BYTES)


@functools.cache
def _encoded_description() -> Text:
    """Made once: routes are the same for as long as the process runs."""
    return Text(msgspec.json.encode(openapi.document(ROUTES)), "application/json")


@functools.cache
def _encoded_schema(shared: bool) -> Text:
    return Text(msgspec.json.encode(schema.document(shared=shared)), "application/schema+json")


async def _description(request: Request) -> Text:
    """GET /openapi.json"""
    return _encoded_description()


async def _schema(request: Request) -> Text:
    """GET /transfers/schema.json"""
    return _encoded_schema(request.services.peering is not None)


_OPEN, _NETWORK, _READ, _USER, _ADMIN = Policy.OPEN, Policy.NETWORK, Policy.READ, Policy.USER, Policy.ADMIN
_STEERING = (200, 400, 403, 404, 409)
_STORING = (200, 400, 403, 404, 409, 413, 415, 503)

ROUTES: Final[tuple[Route, ...]] = (
    _route("GET", "/", _OPEN, dashboard.page, "The dashboard", 200, 304, kind=Kind.PAGE),
    _route("GET", "/dashboard/{file}", _OPEN, dashboard.file, "Its files", 200, 304, 404, kind=Kind.PAGE),
    _hot("/status", _OPEN, status.status, "Heartbeat"),
    _hot("/ready", _OPEN, status.ready, "Whether the gateway takes work, part by part", 200, 503),
    _hot("/metrics", _NETWORK, status.metrics, "Prometheus metrics", 200, 403),
    _route("GET", "/openapi.json", _OPEN, _description, "This description"),
    _hot("/images", _READ, images.brief, "Brief records of public and own images", 200, 400, 403, 404),
    _hot("/images/detail", _READ, images.detail, "Whole records of public and own images", 200, 400, 403, 404),
    _bytes("POST", "/images", _USER, pushes.post, "Add an image: record in headers, bytes as body", *_STORING),
    _bytes("HEAD", "/images/{id}", _READ, pulls.head, "An image's record as headers", 200, 304, 403, 404, 412),
    _bytes(
        "GET",
        "/images/{id}",
        _READ,
        pulls.get,
        "An image's bytes, its record as headers",
        *(200, 206, 304, 403, 404, 409, 412, 416, 502, 503, 505),
    ),
    _bytes("PUT", "/images/{id}", _USER, pushes.put, "Change a record, or give it bytes", *_STORING),
    _route("DELETE", "/images/{id}", _USER, images.delete, "Remove record and bytes", 200, 403, 404),
    _route(
        "POST", "/images/{id}/links", _USER, images.link, "A signed, expiring link to the bytes", 200, 400, 403, 404
    ),
    _route("GET", "/images/{id}/copies", _USER, copies.find, "Where an image's bytes are", 200, 403, 404),
    _route(
        "POST",
        "/images/{id}/copies",
        _USER,
        copies.add,
        "Copy an image's bytes into another store, in the background",
        *(202, 400, 403, 404, 409, 502, 503),
    ),
    _route(
        "DELETE",
        "/images/{id}/copies/{store}",
        _USER,
        copies.remove,
        "Remove an image's bytes from one of its stores",
        *(200, 403, 404, 409, 503),
    ),
    _route("GET", "/scrub", _ADMIN, scrub.state, "What is being hashed again, and which images are bad", 200, 403),
    _route("POST", "/scrub", _ADMIN, scrub.ask, "Have images, or all, hashed again", 202, 400, 403, 404, 409),
    _route("GET", "/cache", _ADMIN, cache.state, "Which images are in the cache", 200, 403, 503),
    _route("POST", "/cache", _ADMIN, cache.warm, "Have an image cached, in the background", 202, 400, 403, 404, 409),
    _route("DELETE", "/cache", _ADMIN, cache.purge, "Remove every image from the cache", 200, 403, 503),
    _route("DELETE", "/cache/{id}", _ADMIN, cache.remove, "Remove an image from the cache", 200, 403, 404, 503),
    _route("DELETE", "/all", _ADMIN, images.delete_all, "Remove every image", 200, 403),
    _route("GET", "/session", _USER, users.session, "Whom the caller is taken for", 200, 403),
    _route("GET", "/users", _ADMIN, users.find, "All users", 200, 403, 404),
    _route("POST", "/users", _ADMIN, users.create, "Add a user; shows the secret once", 200, 400, 403, 409),
    _route("GET", "/users/{access_key}", _ADMIN, users.get, "One user", 200, 403, 404),
    _route("PUT", "/users/{access_key}", _ADMIN, users.change, "Change email or role", 200, 400, 403, 404, 409),
    _route("DELETE", "/users/{access_key}", _ADMIN, users.delete, "Remove a user", 200, 403, 404, 409),
    _route(
        "POST", "/users/{access_key}/rotate", _ADMIN, users.rotate, "Give a new secret; shows it once", 200, 403, 404
    ),
    _route("GET", "/users/{access_key}/tokens", _ADMIN, users.tokens, "A user's tokens", 200, 403, 404),
    _route("POST", "/users/{access_key}/tokens", _ADMIN, users.issue_token, "Issue a bearer token", 200, 400, 403, 404),
    _route("DELETE", "/users/{access_key}/tokens/{id}", _ADMIN, users.revoke_token, "Void a token", 200, 403, 404),
    _route("POST", "/tickets", _USER, users.issue_ticket, "A one-use ticket for the WebSocket", 200, 400, 403),
    _route("GET", "/transfers", _USER, transfers.find, "Transfers under way", 200, 400, 403),
    _route("PATCH", "/transfers", _USER, transfers.change_all, "Pause or limit those that filters name", *_STEERING),
    _route("DELETE", "/transfers", _USER, transfers.cancel_all, "Cancel those that filters name", 200, 400, 403),
    _route("GET", "/transfers/{id}", _USER, transfers.get, "One transfer", 200, 403, 404),
    _route("PATCH", "/transfers/{id}", _USER, transfers.change, "Pause or limit a transfer", *_STEERING),
    _route("DELETE", "/transfers/{id}", _USER, transfers.cancel, "Cancel a transfer", 200, 403, 404, 409),
    _route("GET", "/transfers/history", _USER, history.find, "Transfers that ended, the newest first", 200, 400, 403),
    _route("GET", "/transfers/schema.json", _OPEN, _schema, "The live channel's messages as JSON Schema"),
    _bytes("GET", "/transfers/events", _USER, live.events, "Live transfers as Server-Sent Events", 200, 400, 403, 503),
    _route("GET", "/limits", _ADMIN, limits.state, "The gateway's byte rate", 200, 403),
    _route("PATCH", "/limits", _ADMIN, limits.change, "Change the gateway's byte rate", 200, 400, 403),
    Route(
        method="GET",
        path="/transfers/ws",
        policy=_USER,
        handler=live.websocket,
        summary="Live transfers over WebSocket, subprotocol visor.progress.v1",
        kind=Kind.LIVE,
        statuses=(101, 400, 403, 426),
    ),
    Route(
        method="GET",
        path="/peers/{name}/transfers/ws",
        policy=Policy.GATEWAY,
        handler=live.websocket,
        summary="This gateway's own live transfers, for another gateway",
        kind=Kind.LIVE,
        statuses=(101, 400, 403, 426),
    ),
    _route(
        "POST",
        "/peers/{name}/transfers",
        Policy.GATEWAY,
        shared_view.steer,
        "Steer own transfers, for another gateway",
        *(200, 400, 403),
    ),
)
