"""Images of another service on their way to a gateway, one after another.

Resuming. Each record that an import makes has the source's id as a custom attribute, set in the request that makes it.
So what was done before is read off the gateway's own records, and needs no file that could be lost or be another's:
an image that is available is done; one without bytes (`locked`, or `error` after an upload that was cut) is given them;
one that is `uploading` is somebody's work. Only records of the importing user count, since anyone may set an attribute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import msgspec

from ...client import Client, Forbidden, Progress, Record, Unreachable, VisorError
from .item import Item, Skipped, Unfit
from .place import Place, checked_sha256

IMPORTED: Final = "imported"
PRESENT: Final = "present"
PLANNED: Final = "planned"
SKIPPED: Final = "skipped"
_BEST: Final = ("available", "uploading", "error", "locked")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one image.

    Attributes:
        outcome: `imported`; `present`: an earlier import brought it; `planned`: a dry run found nothing against it;
            `skipped`.
        image: Its `_id` on the gateway; None where it has none.
        reason: Why it was skipped.
        verified: What its bytes were compared by, before they were sent: `size`, and names of digests.
        left_out: What of the source's record was not taken over, each with the reason.
    """

    source_id: str
    name: str
    outcome: str
    image: str | None = None
    reason: str | None = None
    verified: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


class Importer:
    """Brings items to a gateway. `run` may be called once.

    Args:
        attribute: The custom attribute with the source's id.
        place: Where the bytes are; None where no item may have any.
        progress: Opens what shows one upload, given the image's name.
        tell: Called with each outcome as it is known.
    """

    def __init__(
        self,
        client: Client,
        attribute: str,
        place: Place | None,
        *,
        dry_run: bool,
        progress: Callable[[str], AbstractContextManager[Progress]],
        tell: Callable[[Outcome], None],
    ) -> None:
        self._client = client
        self._attribute = attribute
        self._place = place
        self._dry_run = dry_run
        self._progress = progress
        self._tell = tell
        self._there: dict[str, Record] = {}
        self._ids: dict[str, str] = {}
        self._end: VisorError | None = None

    async def run(self, found: Sequence[Item | Skipped]) -> list[Outcome]:
        """Bring every item: those that others name as kernel or ramdisk first. One that fails stops no other.

        A cancellation leaves what was brought, and an image in `error` where one was under way, for the next run.

        Raises:
            VisorError: The gateway can't be asked what it has.
        """
        self._there = await self._brought_before()
        outcomes = []
        for one in sorted(found, key=lambda one: isinstance(one, Item) and bool(one.requires)):
            outcome = await self._outcome(one)
            self._tell(outcome)
            outcomes.append(outcome)
        return outcomes

    async def _brought_before(self) -> dict[str, Record]:
        """The caller's records of earlier imports by the source's id: of several, the one that is furthest."""
        caller = (await self._client.users.caller())["access_key"]
        there: dict[str, Record] = {}
        async for record in self._client.images({"owner": caller}, detail=True):
            source_id = record.get(self._attribute)
            if source_id is None or record["owner"] != caller:
                continue
            other = there.get(source_id)
            if other is None or _BEST.index(record["status"]) < _BEST.index(other["status"]):
                there[source_id] = record
        return there

    async def _outcome(self, one: Item | Skipped) -> Outcome:
        if isinstance(one, Skipped):
            return Outcome(source_id=one.source_id, name=one.name, outcome=SKIPPED, reason=one.reason)
        try:
            return await self._bring(one)
        except Unfit as exc:
            reason = str(exc)
        except VisorError as exc:
            reason = exc.message
            if isinstance(exc, (Unreachable, Forbidden)):  # the next one would fail in the same way
                self._end = exc
        except OSError as exc:
            reason = f"its bytes can't be read: {exc.strerror or type(exc).__name__}"
        known = self._there.get(one.source_id, {}).get("_id")
        return _outcome(one, SKIPPED, image=known, reason=reason)

    async def _bring(self, item: Item) -> Outcome:
        record = self._there.get(item.source_id)
        if record is not None and (record["status"] == "available" or not item.has_bytes):
            _check_same(item, record)
            self._ids[item.source_id] = record["_id"]
            return _outcome(item, PRESENT, image=record["_id"])
        if record is not None and record["status"] == "uploading":
            raise Unfit("it is being uploaded, by another import or one that was just cut: run the import again later")
        if self._end is not None:
            raise Unfit(f"not tried: {self._end.message}")
        fields = item.fields | self._required(item)
        if not item.has_bytes:
            return await self._register(item, fields)
        if self._place is None:
            raise Unfit("it has bytes, and nothing says where they are")
        if self._dry_run and self._place.remote:
            self._ids[item.source_id] = ""
            return _outcome(item, PLANNED)
        async with self._place.file_of(item) as file:
            return await self._send(item, fields, file, None if record is None else record["_id"])

    def _required(self, item: Item) -> dict[str, str]:
        """`kernel` and `ramdisk` as they are called here."""
        for field, source_id in item.requires.items():
            if source_id not in self._ids:
                raise Unfit(f"its {field} '{source_id}' is not imported")
        return {field: self._ids[source_id] for field, source_id in item.requires.items()}

    async def _register(self, item: Item, fields: Mapping[str, str]) -> Outcome:
        if self._dry_run:
            self._ids[item.source_id] = ""
            return _outcome(item, PLANNED)
        made = await self._client.create(fields)
        self._ids[item.source_id] = made["_id"]
        return _outcome(item, IMPORTED, image=made["_id"])

    async def _send(self, item: Item, fields: Mapping[str, str], file: Path, image_id: str | None) -> Outcome:
        sha256 = await checked_sha256(file, item)
        verified = (*(() if item.size is None else ("size",)), *item.digests)
        if self._dry_run:
            self._ids[item.source_id] = ""
            return _outcome(item, PLANNED, image=image_id, verified=verified)
        with self._progress(item.name) as progress:
            if image_id is None:
                made = await self._client.create(fields, file, sha256=sha256, progress=progress)
            else:
                made = await self._client.update(image_id, fields, file, sha256=sha256, progress=progress)
        self._ids[item.source_id] = made["_id"]
        return _outcome(item, IMPORTED, image=made["_id"], verified=verified)


def _check_same(item: Item, record: Record) -> None:
    """Raises `Unfit` where the image that an earlier import brought has other bytes than the source tells of."""
    if not item.has_bytes:
        return
    digests = {"sha256": record.get("sha256"), "md5": None}
    checksum = record.get("checksum") or ""
    digests |= {name: checksum for name, length in (("sha256", 64), ("md5", 32)) if len(checksum) == length}
    differs = item.size not in {None, record["size"]} or any(
        digest is not None and digest != item.digests.get(name, digest) for name, digest in digests.items()
    )
    if differs:
        raise Unfit(f"an earlier import brought other bytes, as '{record['_id']}': delete that to import it again")


def _outcome(
    item: Item, outcome: str, *, image: str | None = None, reason: str | None = None, verified: tuple[str, ...] = ()
) -> Outcome:
    return Outcome(
        source_id=item.source_id,
        name=item.name,
        outcome=outcome,
        image=image,
        reason=reason,
        verified=verified,
        left_out=item.left_out,
    )
