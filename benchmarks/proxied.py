"""Pulls of images that another server keeps: through the gateway, through nginx, through haproxy; and the hash alone,
which bounds who verifies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from .gateway import Gateway
from .haproxy import Haproxy
from .hashalone import HashAlone, WideHashAlone
from .machine import BOTH_CORES
from .nginx import LargeProxyPass, Origin, ProxyPass
from .peer import Peer, Target
from .process import ServerFailed
from .pulls import pull
from .rounds import Contender, Table, alternate
from .stand import Stand, present

#: Streams, MiB of the image, how often one after the other.
MANY: Final = ((1, 1024, 2), (8, 512, 1))


class ReferringGateway(Gateway):
    """The gateway with references to the origin, whose digests it knows and compares at each pull."""

    name = "gateway, verifying"
    settings = "[locations]\ndeny_private = false"

    def __init__(self, directory: Path, origin: Origin) -> None:
        self._origin = origin
        super().__init__(directory)

    def image(self, file: Path) -> Target:
        if file not in self._images:
            location = f"{self._origin.url}{self._origin.image(file).path}"
            headers = {
                **self.authorization,
                "x-image-meta-name": file.name,
                "x-image-meta-architecture": "x86_64",
                "x-image-meta-store": "http",
                "x-image-meta-location": location,
                "content-length": "0",
            }
            made = self.request("POST", "/images", headers=headers)
            self._images[file] = Target(f"/images/{made.json()['image']['_id']}")
            # The first read pins the digest.
            self.request("GET", self._images[file].path)
        return self._images[file]


class SplicingGateway(ReferringGateway):
    """The same, where the operator trusts the origin's ETag and size."""

    name = "gateway, spliced"
    settings = "[locations]\ndeny_private = false\n[stores]\nverify_direct_pulls = false"


class WideGateway(ReferringGateway):
    """The verifying gateway where its hash threads may use the clients' core too."""

    name = "gateway, verifying, 2 cores"
    cores = BOTH_CORES


def workloads(stand: Stand) -> Iterator[Table]:
    """One and eight streams, from an origin over plain TCP."""
    origin = stand.find(Origin)
    if origin is None:
        raise ServerFailed(f"no origin: {stand.absent[Origin.name]}")
    peers: list[Peer] = present(
        *(
            stand.find(cls, partial(_beside, cls, origin))
            for cls in (ProxyPass, LargeProxyPass, Haproxy, SplicingGateway, ReferringGateway, WideGateway)
        )
    )
    hashes = present(stand.find(HashAlone), stand.find(WideHashAlone))
    for streams, mib, repeats in MANY:
        file = stand.file(mib)
        for peer in peers:
            peer.image(file)
        contenders = [Contender(peer, partial(pull, stand, peer, file, streams, repeats)) for peer in peers]
        size = file.stat().st_size * repeats
        contenders += [Contender(peer, partial(peer.hash, size, streams)) for peer in hashes]
        title = f"Pulls from an origin: {streams} stream{'s' * (streams > 1)}, {file.stat().st_size >> 20} MiB each"
        yield alternate(f"proxied-{streams}", title, contenders, stand.options)


def _beside(cls: type[Haproxy | ProxyPass | ReferringGateway], origin: Origin, place: Path) -> Peer:
    return cls(place, origin)
