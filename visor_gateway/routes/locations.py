"""Where an image's bytes are, and how they are read from there."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import StoreUnreachable
from ..image import Image
from ..store.contract import ObjectInfo, ReadStream, Store
from ..store.file import FileStore
from ..transfer.filling import Open
from ..transfer.setbacks import Candidate
from ..transfer.transfer import Transfer
from ..transfer.upstream import Upstream
from .movement import chosen_store
from .request import Services


async def candidates(services: Services, image: Image) -> list[Candidate]:
    """The locations of an available image, in the order in which they are to be read. Those that are known to be bad
    are left out, and copies in stores that are not configured any more.

    Raises:
        InvalidRequest: Its store is not configured any more, and there is no copy.
        ObjectChanged: Its bytes were found bad, and there is no copy.
        StoreUnreachable: It has no location.
    """
    places = [one.of(image) for one in await services.images.locations(image.id)]
    copies = [
        _candidate(services.stores[place.store or ""], place)
        for place in places
        if place.store in services.stores and not services.scrub.is_condemned(place)
    ]
    if copies and (image.store not in services.stores or services.scrub.is_condemned(image)):
        return copies
    services.scrub.demand_not_condemned(image)
    return [_candidate(chosen_store(services, image.store), image), *copies]


def _candidate(store: Store, image: Image) -> Candidate:
    if image.location is None:
        raise StoreUnreachable("The bytes of this image can't be found")
    expected = ObjectInfo(size=image.size, validator=image.validator)
    # A file that can't be read stays so.
    retried = not isinstance(store, FileStore)
    return Candidate(store, image.location, expected, retried=retried, attempt_id=image.attempt_id)


def upstream(
    services: Services,
    candidates: Sequence[Candidate],
    transfer: Transfer,
    offset: int = 0,
    length: int | None = None,
    *,
    verified: bool = False,
) -> Upstream:
    """A read of `length` bytes from `offset` (all the rest if None), not opened yet. The caller closes it."""
    return Upstream(
        candidates,
        transfer,
        offset,
        length,
        verified=verified,
        setbacks=services.setbacks,
        retry_timeout=services.settings.stores.retry_timeout,
    )


def reader(services: Services, candidates: Sequence[Candidate]) -> Open:
    """How the bytes at these locations are read."""

    async def read(transfer: Transfer, offset: int, length: int | None, verified: bool) -> ReadStream:
        opened = upstream(services, candidates, transfer, offset, length, verified=verified)
        await opened.open()
        return opened

    return read
