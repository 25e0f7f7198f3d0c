"""Every route with its access policy. A route that is not here does not exist; one without a policy stops the start."""

from __future__ import annotations

import enum
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

import msgspec

from ..errors import MethodNotAllowed, NotFound
from .request import Answer, Request, Text

Handler: TypeAlias = Callable[[Request], Awaitable[Answer | Text]]


class Policy(enum.Enum):
    """Who may ask for a route. Which records they then see is decided record by record."""

    OPEN = "no credentials"
    NETWORK = "an allowed network, or credentials"
    READ = "credentials, a signed link for its image, or nobody's where anonymous_pull is on"
    USER = "credentials"
    ADMIN = "an admin's credentials"
    PEER = "another server's key or certificate, or an allowed network"
    GATEWAY = "another gateway on the same database"
    KNOWN_PEER = "another server's key or certificate"


class Kind(enum.Enum):
    """What carries a route."""

    CONTROL = "control"  # small representations, by Quart
    HOT = "hot"  # the same, asked for often and never with a body: raw ASGI
    BYTES = "bytes"  # image bytes, raw ASGI
    LIVE = "live"  # WebSocket
    PAGE = "page"  # a file of the dashboard, carried as HOT


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path.

    Attributes:
        path: Pattern with `{name}` for one segment.
        handler: A `Handler`; for BYTES and LIVE an ASGI-like function of their modules.
        summary: One line for the API description.
        statuses: Statuses it may answer with, for the API description.
    """

    method: str
    path: str
    policy: Policy | None
    handler: Callable[..., Awaitable[Any]]
    summary: str
    kind: Kind = Kind.CONTROL
    statuses: tuple[int, ...] = (200,)


_PARAMETER: Final = re.compile(r"\{(\w+)\}")


class RouteTable:
    """Finds the route of a request.

    Raises:
        TypeError: A route has no policy. Raised when the table is made, that is at start-up.
        ValueError: A route stands there twice.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._paths: dict[str, dict[str, Route]] = {}
        for route in self.routes:
            if not isinstance(route.policy, Policy):
                raise TypeError(f"{route.method} {route.path} has no access policy")
            methods = self._paths.setdefault(route.path, {})
            if route.method in methods:
                raise ValueError(f"{route.method} {route.path} is there twice")
            methods[route.method] = route
        patterns = sorted((path for path in self._paths if "{" in path), key=lambda path: path.count("{"))
        self._patterns = [(re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", path)), self._paths[path]) for path in patterns]

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route and its path parameters. One trailing slash is accepted.

        Raises:
            NotFound: No such path.
            MethodNotAllowed: The path has other methods.
        """
        if len(path) > 1 and path.endswith("/"):
            path = path[:-1]
        # Fixed paths before patterns: /images/detail is not an image.
        if "{" not in path and (fixed := self._paths.get(path)) is not None:
            return self._method(fixed, method), {}
        for pattern, methods in self._patterns:
            match = pattern.fullmatch(path)
            if match is not None:
                return self._method(methods, method), match.groupdict()
        raise NotFound("Invalid operation or path.")

    @staticmethod
    def _method(methods: Mapping[str, Route], method: str) -> Route:
        if method not in methods:
            raise MethodNotAllowed(tuple(methods))
        return methods[method]
