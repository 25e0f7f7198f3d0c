"""Pulls of an image that the cache has, beside those of one in the file store."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from .fanout import CachingGateway
from .nginx import Origin
from .process import ServerFailed
from .proxied import ReferringGateway
from .pulls import MANY, pull
from .rounds import Contender, Table, alternate
from .stand import Stand, present

#: The first rows of those from the file store, so that their figures stand beside each other.
FEW: Final = MANY[:2]


class CachedGateway(ReferringGateway):
    """The gateway with references to the origin, each of which was pulled into its cache before."""

    name = "gateway, cached"
    earlier_pulls = 1
    settings = CachingGateway.settings


def workloads(stand: Stand) -> Iterator[Table]:
    """One and eight streams."""
    origin = stand.find(Origin)
    if origin is None:
        raise ServerFailed(f"no origin: {stand.absent[Origin.name]}")
    peers = present(stand.gateway, stand.find(CachedGateway, lambda place: CachedGateway(place, origin)))
    for streams, mib, repeats in FEW:
        file = stand.file(mib)
        for peer in peers:
            peer.image(file)
        contenders = [Contender(peer, partial(pull, stand, peer, file, streams, repeats)) for peer in peers]
        title = f"Pulls of a cached image: {streams} stream{'s' * (streams > 1)}, {file.stat().st_size >> 20} MiB each"
        yield alternate(f"cached-{streams}", title, contenders, stand.options)
