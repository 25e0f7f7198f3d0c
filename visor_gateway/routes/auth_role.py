"""The role `auth`: VISOR's Auth API over the accounts of this gateway (docs/protocol.md, The Auth API).

A peer needs users' secrets to check their signatures, and so may do whatever any user may. Secrets go to a peer that
has shown a key or a certificate, and to nobody else: one that is let in by its network sees users without them.
"""

from __future__ import annotations

from typing import Any, Final

from ..errors import InvalidField, NotFound
from ..meta.contract import User
from ..visor_documents import NO_USERS, NO_USERS_FILTERED, UserDocument, read_user_request
from ..visor_documents import user as user_document
from . import role_request
from .request import Answer
from .role_request import RoleRequest, route
from .table import Policy


async def find(request: RoleRequest) -> Answer:
    """GET /users"""
    filters = request.query
    users = await request.services.accounts.find(filters)
    if not users:
        raise NotFound(NO_USERS_FILTERED if filters else NO_USERS)
    return Answer({"users": [_shown(request, user) for user in users]})


async def get(request: RoleRequest) -> Answer:
    """GET /users/{access_key}"""
    access_key = request.params["access_key"]
    user = await request.services.accounts.get(access_key)
    if user is None:
        raise NotFound(f"No user found with access_key '{access_key}'.")
    return Answer({"user": _shown(request, user)})


async def create(request: RoleRequest) -> Answer:
    """POST /users: a user, never an admin."""
    fields = read_user_request(request.body, new=True)
    user = await request.services.accounts.create(fields["access_key"], fields["email"], "user")
    return Answer({"user": _shown(request, user)})


async def change(request: RoleRequest) -> Answer:
    """PUT /users/{access_key}: its email."""
    access_key = request.params["access_key"]
    fields = read_user_request(request.body, new=False)
    if fields.get("access_key", access_key) != access_key:
        raise InvalidField("These fields are read-only: access_key")
    user = await request.services.accounts.change(access_key, email=fields.get("email"))
    return Answer({"user": _shown(request, user)})


async def delete(request: RoleRequest) -> Answer:
    """DELETE /users/{access_key}: the account as it was."""
    access_key = request.params["access_key"]
    user = await request.services.accounts.delete(access_key)
    # Who watches by rights that he has no longer is told goodbye.
    await request.services.plane.dismiss(access_key)
    return Answer({"user": _shown(request, user)})


def _shown(request: RoleRequest, user: User) -> dict[str, Any]:
    document = UserDocument(
        id=user.id,
        access_key=user.access_key,
        secret_key=user.secret_key,
        email=user.email,
        created_at=user.created_at,
        updated_at=user.updated_at,
    )
    shown = user_document(document)
    if not request.peer.is_known:
        shown["secret_key"] = None
    return shown


ROUTES: Final = (
    route("GET", "/status", Policy.OPEN, role_request.status, "Whether it is there"),
    route("GET", "/ready", Policy.OPEN, role_request.ready, "Whether the gateway takes work", 200, 503),
    route("GET", "/users", Policy.PEER, find, "Users", 200, 403, 404),
    route("POST", "/users", Policy.KNOWN_PEER, create, "Add a user", 200, 400, 403, 409),
    route("GET", "/users/{access_key}", Policy.PEER, get, "One user", 200, 403, 404),
    route("PUT", "/users/{access_key}", Policy.KNOWN_PEER, change, "Change a user", 200, 400, 403, 404),
    route("DELETE", "/users/{access_key}", Policy.KNOWN_PEER, delete, "Remove a user", 200, 403, 404, 409),
)
