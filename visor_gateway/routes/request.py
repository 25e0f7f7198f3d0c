"""What a handler gets and gives: values, so that handlers know neither ASGI nor Quart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl

import msgspec

from ..config import Settings
from ..errors import InvalidRequest
from ..meta.access import AccessCounts
from ..meta.contract import AccountRepository, ImageRepository
from ..meta.gateways import PeerKeys
from ..metrics import Metrics
from ..store.contract import Store
from ..store.http import HttpStore
from ..transfer.cache import Cache
from ..transfer.copier import Copier
from ..transfer.copying import Copying
from ..transfer.engine import Board, Engine
from ..transfer.health import StoreHealth
from ..transfer.history import History
from ..transfer.ingest import Ingest
from ..transfer.plane import ControlPlane
from ..transfer.scrub import Scrub
from ..transfer.setbacks import Setbacks
from ..transfer.splice import Splicer
from ..transfer.sweep import Sweep
from ..transfer.zerocopy import ZeroCopy
from .entity import Headers
from .kept import Kept
from .view import View, headers_size, view_size


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """On whose behalf a request acts.

    Attributes:
        access_key: None for an anonymous one.
        only_image: The one image that a signed link opens; None for no such bound.
        own_only: Whether this is another gateway, for which transfers of further ones do not exist.
        rights: Of whom watches: a mark of the role and the secret that he was let in by (`User.rights`).
    """

    access_key: str | None = None
    is_admin: bool = False
    only_image: str | None = None
    own_only: bool = False
    rights: str | None = None


ANONYMOUS = Caller()


VIEWS_BYTES: Final = 4 << 20
PAGES_BYTES: Final = 4 << 20


class Peering(msgspec.Struct, frozen=True):
    """This gateway among others that share a view.

    Attributes:
        name: Its name.
        keys: What others prove themselves by.
    """

    name: str
    keys: PeerKeys


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that handlers work with; built once, by the daemon.

    Attributes:
        references: One of `stores`.
        plane: The whole gateway.
        hub: The transfers of this process.
        views: Records as headers, by their `uri`.
        pages: Lists as they are sent, by all that makes one differ from another.
        peering: None where the gateway shares its view with nobody.
    """

    settings: Settings
    images: ImageRepository
    accounts: AccountRepository
    stores: Mapping[str, Store]
    references: HttpStore
    plane: ControlPlane
    hub: Board
    engine: Engine
    ingest: Ingest
    sweep: Sweep
    scrub: Scrub
    health: StoreHealth
    metrics: Metrics
    access_counts: AccessCounts
    history: History
    zerocopy: ZeroCopy
    splicer: Splicer
    copier: Copier
    cache: Cache
    setbacks: Setbacks
    copying: Copying
    readiness: Readiness
    peering: Peering | None = None
    views: Kept[str, View] = msgspec.field(default_factory=lambda: Kept(VIEWS_BYTES, view_size))
    pages: Kept[tuple[object, ...], Rendered] = msgspec.field(default_factory=lambda: Kept(PAGES_BYTES, Rendered.size))


class Readiness(Protocol):
    """Whether the gateway takes work; set by the daemon."""

    listening: bool
    draining: bool


def parsed_query(query_string: bytes) -> list[tuple[str, str]]:
    """Query parameters in order, decoded; blank values are kept.

    Raises:
        InvalidRequest: The query is not UTF-8, or has more than 100 parameters.
    """
    try:
        return parse_qsl(query_string.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError as exc:
        raise InvalidRequest("The query is not valid") from exc


class Request(msgspec.Struct, kw_only=True):
    """One request to a handler.

    Attributes:
        params: Path parameters.
        headers: As received, names in lower case.
        body: The whole body, for the routes that take JSON.
        client: Address of the peer, behind trusted proxies the one that they name.
        base_url: Scheme and authority under which the client reached the gateway, or `public_url`.
        scope: The ASGI scope.
        accept: The `Accept` header, several of them as one.
    """

    method: str
    caller: Caller
    params: dict[str, str]
    headers: list[tuple[bytes, bytes]]
    services: Services
    client: str | None
    base_url: str
    scope: Mapping[str, Any]
    accept: str | None = None
    body: bytes = b""

    @property
    def query(self) -> list[tuple[str, str]]:
        """Query parameters. Raises as `parsed_query`."""
        return parsed_query(self.scope["query_string"])

    def header(self, name: bytes) -> bytes | None:
        """The first header of that lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; an empty body is an empty one.

        Raises:
            InvalidRequest: It is no JSON object.
        """
        if not self.body:
            return {}
        try:
            return msgspec.json.decode(self.body, type=dict[str, Any])
        except msgspec.DecodeError as exc:
            raise InvalidRequest("The body is not a JSON object") from exc

    def image_uri(self, image_id: str) -> str:
        """The absolute URL of an image on this gateway."""
        return f"{self.base_url}/images/{image_id}"


class Answer(msgspec.Struct, frozen=True):
    """What a handler gives: a payload for JSON or XML, or None for an empty body."""

    payload: Mapping[str, Any] | None
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


class Rendered(msgspec.Struct, frozen=True):
    """An answer as it is sent."""

    status: int
    headers: Headers
    body: bytes

    def size(self) -> int:
        """About how many bytes it takes."""
        return len(self.body) + headers_size(self.headers)


class Text(msgspec.Struct, frozen=True):
    """An answer that is not negotiated."""

    body: bytes
    content_type: str
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
