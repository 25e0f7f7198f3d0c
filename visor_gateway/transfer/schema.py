"""The messages of `visor.progress.v1` as a JSON Schema (2020-12), for those who write clients. Sans-IO.

Made from the messages' own types. What those leave open, because it is encoded from a transfer as it stands, is
declared here; a test holds real messages to the schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from . import messages
from .meter import WaitKind
from .transfer import Kind, State

_TEMPLATE: Final = "#/$defs/{name}"

Count = Annotated[int, msgspec.Meta(ge=0)]


class Transfer(msgspec.Struct, forbid_unknown_fields=True):
    """One movement of bytes. `wait` is in ms of the last interval; `position` is there while it is queued, `gateway`
    where gateways share a view."""

    id: str
    kind: Kind
    image: str
    store: str | None
    client: str | None
    user: str | None
    state: State
    bytes: Count
    size: Count | None
    offset: Count
    rate: Count
    rate_avg: Count
    eta_s: float | None
    started_at: str
    wait: dict[WaitKind, Count]
    waiters: Count
    attempt: Annotated[int, msgspec.Meta(ge=1)]
    limit_bytes_per_s: Count | None
    error: str | None
    position: Annotated[int, msgspec.Meta(ge=1)] | msgspec.UnsetType = msgspec.UNSET
    gateway: str | msgspec.UnsetType = msgspec.UNSET


class Totals(msgspec.Struct, forbid_unknown_fields=True):
    """Sums over the transfers of a snapshot; `rate` in bytes per second."""

    transfers: Count
    rate: Count
    bytes: Count
    by_state: dict[State, Count]
    by_kind: dict[Kind, Count]


def document(*, shared: bool = False) -> dict[str, Any]:
    """The schema of everything that the gateway sends; `$defs` has what a client may say, too.

    Args:
        shared: Whether the gateway shares its view with others, so that transfers have a `gateway`.
    """
    said = (
        messages.Hello,
        messages.Snapshot,
        messages.Delta,
        messages.Event,
        messages.Gap,
        messages.Heartbeat,
        messages.Error,
        messages.Bye,
    )
    heard = (messages.Subscribe, messages.Resume)
    types = (*said, *heard, Transfer, Totals)
    _, components = msgspec.json.schema_components(types, ref_template=_TEMPLATE)
    components["Snapshot"]["properties"]["transfers"]["items"] = _ref("Transfer")
    components["Snapshot"]["properties"]["totals"] = _ref("Totals")
    components["Event"]["properties"]["transfer"] = _ref("Transfer")
    if not shared:
        del components["Transfer"]["properties"]["gateway"]
    for each in said:
        # What is sent has every field; of what a client says, some may be left out.
        components[each.__name__]["required"] = list(components[each.__name__]["properties"])
        components[each.__name__]["additionalProperties"] = False
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": messages.PROTOCOL,
        "oneOf": [_ref(each.__name__) for each in said],
        "$defs": components,
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _TEMPLATE.format(name=name)}
