"""Accounts, tokens and tickets (docs/protocol.md)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ..errors import InvalidField, NotFound
from ..image import timestamp
from ..meta.contract import Token, User
from .request import Answer, Request

TOKEN_SECONDS: Final = 30 * 24 * 3600
TOKEN_SECONDS_MAX: Final = 10 * 365 * 24 * 3600
TICKET_SECONDS: Final = 30
TICKET_ROUTES: Final = ("/transfers/ws",)

_CLIENT_FIELDS: Final = ("access_key", "email", "role")


def shown(user: User, *, secret: bool = False) -> dict[str, Any]:
    """A user as clients see it; `secret` only in the answer that made it."""
    values = {
        "_id": user.id,
        "access_key": user.access_key,
        "email": user.email,
        "role": user.role,
        "created_at": timestamp(user.created_at),
        "updated_at": timestamp(user.updated_at) if user.updated_at else None,
    }
    if secret:
        values["secret_key"] = user.secret_key
    return values


async def session(request: Request) -> Answer:
    """GET /session: whom the gateway takes the caller for."""
    role = "admin" if request.caller.is_admin else "user"
    return Answer({"session": {"access_key": request.caller.access_key, "role": role}}, headers=_UNCACHED)


async def find(request: Request) -> Answer:
    """GET /users"""
    filters = request.query
    users = await request.services.accounts.find(filters)
    if not users:
        raise NotFound("No users found with given parameters." if filters else "No users found.")
    return Answer({"users": [shown(user) for user in users]})


async def get(request: Request) -> Answer:
    """GET /users/{access_key}"""
    return Answer({"user": shown(await _user(request))})


async def create(request: Request) -> Answer:
    """POST /users"""
    fields = _fields(request)
    missing = [name for name in ("access_key", "email") if not fields.get(name)]
    if missing:
        raise InvalidField(f"These fields are required: {', '.join(missing)}")
    user = await request.services.accounts.create(fields["access_key"], fields["email"], fields.get("role", "user"))
    location = f"{request.base_url}/users/{user.access_key}"
    return Answer({"user": shown(user, secret=True)}, headers=(("location", location), *_UNCACHED))


async def change(request: Request) -> Answer:
    """PUT /users/{access_key}"""
    fields = _fields(request)
    if "access_key" in fields:
        raise InvalidField("These fields are read-only: access_key")
    if not fields:
        raise InvalidField("Nothing to change: send email or role")
    user = await request.services.accounts.change(
        request.params["access_key"], email=fields.get("email"), role=fields.get("role")
    )
    if "role" in fields:
        await _dismiss(request)
    return Answer({"user": shown(user)})


async def delete(request: Request) -> Answer:
    """DELETE /users/{access_key}"""
    user = await request.services.accounts.delete(request.params["access_key"])
    await _dismiss(request)
    return Answer({"user": shown(user)})


async def rotate(request: Request) -> Answer:
    """POST /users/{access_key}/rotate"""
    user = await request.services.accounts.rotate(request.params["access_key"])
    await _dismiss(request)
    return Answer({"user": shown(user, secret=True)}, headers=_UNCACHED)


async def tokens(request: Request) -> Answer:
    """GET /users/{access_key}/tokens"""
    found = await request.services.accounts.tokens(request.params["access_key"])
    return Answer({"tokens": [_token_shown(token) for token in found]})


async def issue_token(request: Request) -> Answer:
    """POST /users/{access_key}/tokens"""
    body = _object(request.json(), "token")
    seconds = _seconds(body.pop("expires_in", TOKEN_SECONDS))
    read_only = body.pop("read_only", False)
    name = body.pop("name", None)
    if not isinstance(read_only, bool) or not isinstance(name, str | None):
        raise InvalidField("Invalid token: read_only is true or false, name is text")
    if body:
        raise InvalidField(f"Unknown field '{next(iter(body))}': a token has expires_in, read_only and name")
    token, text = await request.services.accounts.issue_token(
        request.params["access_key"],
        expires_at=datetime.now(UTC) + timedelta(seconds=seconds),
        read_only=read_only,
        name=name,
    )
    return Answer({"token": {**_token_shown(token), "token": text}}, headers=_UNCACHED)


async def revoke_token(request: Request) -> Answer:
    """DELETE /users/{access_key}/tokens/{id}"""
    token = await request.services.accounts.revoke_token(request.params["access_key"], request.params["id"])
    return Answer({"token": _token_shown(token)})


async def issue_ticket(request: Request) -> Answer:
    """POST /tickets"""
    route = _object(request.json(), "ticket").get("route", TICKET_ROUTES[0])
    if route not in TICKET_ROUTES:
        raise InvalidField(f"Invalid route, available options: {', '.join(TICKET_ROUTES)}")
    if request.caller.access_key is None:
        raise InvalidField("A ticket needs a user")
    expires_at = datetime.now(UTC) + timedelta(seconds=TICKET_SECONDS)
    text = await request.services.accounts.issue_ticket(request.caller.access_key, route, expires_at)
    return Answer({"ticket": {"ticket": text, "route": route, "expires_at": timestamp(expires_at)}}, headers=_UNCACHED)


_UNCACHED: Final = (("cache-control", "no-store"),)


async def _dismiss(request: Request) -> None:
    """Who watches by rights that he has no longer is told goodbye."""
    await request.services.plane.dismiss(request.params["access_key"])


async def _user(request: Request) -> User:
    access_key = request.params["access_key"]
    user = await request.services.accounts.get(access_key)
    if user is None:
        raise NotFound(f"No user found with access_key '{access_key}'.")
    return user


def _object(body: dict[str, Any], name: str) -> dict[str, Any]:
    """The fields, given bare or, as VISOR does, inside an object of that name."""
    inner = body.get(name, body)
    if not isinstance(inner, dict):
        raise InvalidField(f"The field '{name}' must be an object")
    return dict(inner)


def _fields(request: Request) -> dict[str, str]:
    fields = _object(request.json(), "user")
    for name, value in fields.items():
        if name not in _CLIENT_FIELDS:
            known = name in ("_id", "secret_key", "created_at", "updated_at")
            raise InvalidField(f"These fields are read-only: {name}" if known else f"Unknown field '{name}'")
        if not isinstance(value, str):
            raise InvalidField(f"Invalid {name}: it must be text")
    return fields


def _seconds(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= TOKEN_SECONDS_MAX:
        raise InvalidField(f"Invalid expires_in: it must be a number of seconds from 1 to {TOKEN_SECONDS_MAX}")
    return value


def _token_shown(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "access_key": token.access_key,
        "name": token.name,
        "read_only": token.read_only,
        "created_at": timestamp(token.created_at),
        "expires_at": timestamp(token.expires_at),
    }
