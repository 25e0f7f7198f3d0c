"""The one way out of the gateway: a guarded dialer, a connection pool, and bodies as receive streams."""

from __future__ import annotations

from .body import Body
from .errors import (
    AddressDenied,
    BadResponse,
    BadTarget,
    BodyBroken,
    OutboundError,
    RedirectRefused,
    SchemeRefused,
    StaleConnection,
    Unreachable,
    Untrusted,
)
from .exchange import Outbound, Response
from .policy import CONFIGURED, LocationPolicy, is_globally_reachable
from .sending import BytesBody, RequestBody
from .upload import Answer, Upload

__all__ = [
    "CONFIGURED",
    "AddressDenied",
    "Answer",
    "BadResponse",
    "BadTarget",
    "Body",
    "BodyBroken",
    "BytesBody",
    "LocationPolicy",
    "Outbound",
    "OutboundError",
    "RedirectRefused",
    "RequestBody",
    "Response",
    "SchemeRefused",
    "StaleConnection",
    "Unreachable",
    "Untrusted",
    "Upload",
    "is_globally_reachable",
]
