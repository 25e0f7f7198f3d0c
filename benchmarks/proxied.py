"""Pulls of images that another server keeps: through the gateway, through nginx, through haproxy; and the
hashes alone, which bound who verifies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from .gateway import Gateway
from .haproxy import Haproxy
from .hashalone import Blake3Alone, HashAlone, WideHashAlone
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
    """The gateway with references to the origin, whose bytes it holds at each pull to the BLAKE3 that it learned."""

    name = "gateway, verifying"
    #: Pulls that come before the measured ones: the first pins the SHA-256, the second learns the BLAKE3.
    earlier_pulls = 2
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
            for _ in range(self.earlier_pulls):
                self.request("GET", self._images[file].path)
        return self._images[file]


class SplicingGateway(ReferringGateway):
    """The same, where the operator trusts the origin's ETag and size."""

    name = "gateway, spliced"
    settings = "[locations]\ndeny_private = false\n[stores]\nverify_direct_pulls = false"


class LearningGateway(ReferringGateway):
    """The gateway at the first pull that it holds to a SHA-256: it learns the BLAKE3 by it."""

    name = "gateway, first verified pull"
    earlier_pulls = 1

    def forget(self, file: Path) -> None:
        """Have a new reference, of which nothing is learned."""
        del self._images[file]
        self.image(file)


class WideLearningGateway(LearningGateway):
    """The same on both cores."""

    name = "gateway, first verified pull, 2 cores"
    cores = BOTH_CORES


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
    learners = present(*(_learning(stand, cls, origin) for cls in (LearningGateway, WideLearningGateway)))
    hashes = present(stand.find(HashAlone), stand.find(WideHashAlone), stand.find(Blake3Alone))
    for streams, mib, repeats in MANY:
        file = stand.file(mib)
        for peer in [*peers, *learners]:
            peer.image(file)
        contenders = [Contender(peer, partial(pull, stand, peer, file, streams, repeats)) for peer in peers]
        # Once each: the one behind would find it learned.
        contenders += [
            Contender(peer, partial(pull, stand, peer, file, streams), partial(peer.forget, file)) for peer in learners
        ]
        size = file.stat().st_size * repeats
        contenders += [Contender(peer, partial(peer.hash, size, streams)) for peer in hashes]
        title = f"Pulls from an origin: {streams} stream{'s' * (streams > 1)}, {file.stat().st_size >> 20} MiB each"
        yield alternate(f"proxied-{streams}", title, contenders, stand.options)


def _learning(stand: Stand, cls: type[LearningGateway], origin: Origin) -> LearningGateway | None:
    return stand.find(cls, lambda place: cls(place, origin))


def _beside(cls: type[Haproxy | ProxyPass | ReferringGateway], origin: Origin, place: Path) -> Peer:
    return cls(place, origin)
