"""Records of images, the attempts to write their bytes, and where their bytes are."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from datetime import datetime
from typing import Protocol

import msgspec

from ...image import Image

LEASE_SECONDS = 30.0  # an upload whose daemon died is swept after this long
RENEW_SECONDS = 10.0  # a third of a lease: two renewals may fail


class ImageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What a list shows.

    Attributes:
        viewer: Access key whose private images are included; None for public images only.
        everything: Every image of every owner (for admins' work, such as DELETE /all).
        filters: Named fields or custom attributes, all of which must be equal (text compare).
        sort: Name of a shown field; ties are broken by `_id` in the same direction. Unset values come first
            in ascending order.
        descending: Direction.
        limit: Rows at most.
        marker: `_id` after which (in sort order) the page begins; unknown: `InvalidRequest`.
    """

    viewer: str | None = None
    everything: bool = False
    filters: tuple[tuple[str, str], ...] = ()
    sort: str = "_id"
    descending: bool = False
    limit: int = 1000
    marker: str | None = None


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try to write an image's bytes, and its lease.

    Attributes:
        image_id: The image.
        attempt_id: Random UUID; with `image_id` it makes the object's key.
        instance_id: The daemon that writes.
        store: Name of the store that is written to.
        location: Where the object will be.
        copies: The attempt whose bytes this one copies to a further location; None for one that writes new bytes.
    """

    image_id: str
    attempt_id: str
    instance_id: str
    store: str
    location: str
    copies: str | None = None

    @property
    def key(self) -> str:
        """The object's key in its store."""
        return f"{self.image_id}/{self.attempt_id}"


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """A copy of an image's bytes, beside the location that its record names.

    Attributes:
        image_id: The image.
        store: Name of the store; an image has one location in each.
        position: Its place in the order in which locations are read; the record's own comes before all.
        location: The object's URI.
        attempt_id: The attempt that wrote it.
        validator: The store's validator of the object when it was written.
        verified_at: When its bytes were last compared with the record's digest.
        bad_since: When they were found to be others; None while they are right.
    """

    image_id: str
    store: str
    position: int
    location: str
    attempt_id: str
    validator: str | None
    verified_at: datetime
    bad_since: datetime | None = None

    def of(self, image: Image) -> Image:
        """The record as it would be if this were its only location."""
        return msgspec.structs.replace(
            image,
            store=self.store,
            location=self.location,
            attempt_id=self.attempt_id,
            validator=self.validator,
            scrubbed_at=self.verified_at,
            bad_since=self.bad_since,
        )


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of bytes once they are durable: size in bytes, hex digests, the store's validator. Of a reference
    only what its origin tells."""

    size: int | None
    checksum: str | None
    sha256: str | None
    validator: str | None


class ImageRepository(Protocol):
    """Records of images. A record under a tombstone does not exist for any method but the sweep's."""

    async def version(self) -> Hashable | None:
        """What is another value once any change to any record, by any process, has been acknowledged, or a read has
        failed. It is as it was at some moment since the call. So what was read since it was last told is right for as
        long as it stays. None where that can't be told now: then nothing may be kept."""
        ...

    async def insert(self, image: Image) -> None:
        """Add a new record."""
        ...

    async def get(self, image_id: str) -> Image | None:
        """One record, or None."""
        ...

    async def find(self, query: ImageQuery) -> list[Image]:
        """Records in order. Empty where nothing matches. Raises `InvalidRequest` for an unknown marker."""
        ...

    async def replace(self, image: Image, *, expected: Image) -> Image:
        """Store what differs between `image` and `expected`, if status, store, location and format are still
        `expected`'s. Fields that do not differ are left alone, so that two changes to different fields both last.
        `_id`, owner, creation, attempt and access counts are never changed. Returns the record as stored.

        Raises:
            NotFound: The record is gone.
            Conflict: Its state changed meanwhile.
            InvalidField: Together with another change the record would become too large.
        """
        ...

    async def promise(self, attempt: Attempt, *, new: Image | None = None) -> None:
        """Announce an attempt at a `locked` or `error` image that begins later, such as an import in the queue: it has
        its lease from now on, so that it is ended by the sweep if nobody ever begins it. The image's status stays.
        Another attempt may begin before; then this one is lost.

        Args:
            attempt: Its location is empty.
            new: A record that is not stored yet and is added in the same transaction.

        Raises:
            NotFound: No such image.
            Conflict: `Can only assign image file to a locked or error image`.
        """
        ...

    async def begin(self, attempt: Attempt, *, new: Image | None = None) -> Image:
        """Take a `locked` or `error` image for writing: status `uploading`, the store's name and the attempt's lease
        are set, in one transaction. Returns the new record.

        Args:
            attempt: Its `location` may be empty still; `commit` records the one that it is given.
            new: A record that is not stored yet and is added in the same transaction.

        Raises:
            NotFound: No such image.
            Conflict: `Can only assign image file to a locked or error image`.
            AttemptLost: It was promised, and is lost since.
        """
        ...

    async def renew(self, instance_id: str, *, writing: Collection[str] | None = None) -> set[str]:
        """Extend the leases of this instance's attempts by `LEASE_SECONDS`: of those in `writing` (attempt ids), or of
        all. An attempt that nobody works on must not be renewed, or the sweep can never end it. Returns the attempt
        ids that it still holds; one that is missing was lost: its lease ran out (which is final), or its image was
        deleted."""
        ...

    async def commit(self, attempt: Attempt, written: Written) -> Image:
        """Make the image `available` with the attempt's location and `written`; the lease ends. Calling it again
        after it succeeded returns the record.

        After `MetadataUnavailable` the outcome is not known. The writer may call it again; it must not remove its
        object, which the record may name: if it is not named, the sweep removes it when the lease is over.

        Raises:
            AttemptLost: The attempt no longer holds the image, or its lease ran out; nothing was changed. The
                writer then removes its own object.
        """
        ...

    async def fail(self, attempt: Attempt, *, bytes_left: bool = False) -> None:
        """Set status `error`, size and digests None, location None, if the attempt still holds the image or the promise
        of it; end its lease.

        Args:
            bytes_left: The store could not be made to remove what the attempt wrote. The lease then stays, expired,
                so that the sweep does it; call `fail` without this once they are gone.
        """
        ...

    async def entomb(self, image_id: str) -> Image:
        """Hide a record for ever, in one transaction. Returns it as it was.

        Raises:
            NotFound: No such image, or entombed already.
        """
        ...

    async def bury(self, image_id: str) -> None:
        """Remove an entombed record. Call it only when its bytes are gone."""
        ...

    async def entombed(self) -> list[Image]:
        """Records whose delete is unfinished, but for those that an attempt with a lease may still be writing. (Leases
        of entombed images are not renewed.)"""
        ...

    async def expired(self, *, ours: str | None = None, ended: str | None = None) -> list[Attempt]:
        """Attempts whose lease is over, and those of instances that can't be writing any more: of `ended`, and at
        start of all on this data directory but `ours`. What is returned can't commit or renew ever again, and is
        returned again until `fail` ends it. For SQLite, which is one data directory's, every instance but `ours` is
        an earlier one."""
        ...

    async def known_keys(self) -> set[str]:
        """Keys of every object that a record, a copy or a lease names."""
        ...

    async def begin_copy(self, attempt: Attempt) -> Image:
        """Give an attempt a lease to copy the bytes that `attempt.copies` wrote into another store. The record stays
        as it is. Returns it.

        Raises:
            NotFound: No such image.
            Conflict: The image does not have these bytes, or a copy is in that store already or under way.
        """
        ...

    async def commit_copy(self, attempt: Attempt, validator: str | None) -> Location:
        """Add the attempt's location to the image's; the lease ends. Calling it again after it succeeded returns the
        location. `commit` says what a writer may do after `MetadataUnavailable`, and `fail` ends a copy that failed.

        Raises:
            AttemptLost: The image is gone or has other bytes now, or the lease ran out; nothing was changed.
        """
        ...

    async def locations(self, image_id: str) -> list[Location]:
        """The copies of an image's bytes, in order; those of an entombed image too."""
        ...

    async def copying(self, image_id: str) -> list[Attempt]:
        """Copies of an image that are under way."""
        ...

    async def remove_location(self, image_id: str, store: str, *, instance_id: str) -> Attempt:
        """Forget that an image's bytes are in a store. Where the record named that location, the first copy takes its
        place.

        Returns:
            What is left of it: an attempt whose lease is over. `fail` ends it once the object is gone; otherwise the
            sweep removes it.

        Raises:
            NotFound: No such image, or it has no bytes in that store.
            Conflict: They are nowhere else, or the image is being copied.
        """
        ...

    async def count_access(self, counts: Mapping[str, tuple[int, datetime]]) -> None:
        """Add to `access_count` and set `accessed_at`, by image `_id`."""
        ...

    async def judge(self, image: Image, *, good: bool, validator: str | None = None) -> bool:
        """Record that an image's bytes were hashed again, if the record or a copy still has those of `image`'s attempt.
        Returns whether one has.

        Args:
            good: They are right: the image is not bad any more, and `validator` is what its store says of them now.
                Otherwise it is bad from now on, or since when it was already.
        """
        ...

    async def pin(self, image: Image, *, sha256: str, size: int) -> str | None:
        """Record what the first complete read of a reference found, unless an earlier one was first. Returns the
        SHA-256 that the record has then; None if it is gone, or no longer of `image`'s attempt."""
        ...

    async def learn(self, image: Image, blake3: str | None) -> bool:
        """Keep the hex BLAKE3 of bytes that were found to have `image`'s SHA-256 (which is not None), or forget it
        (None), if the record still has that SHA-256. Returns whether it has. Other bytes make it void."""
        ...

    async def scrubbed_before(self, store: str, moment: datetime) -> list[str]:
        """Available images with a location in a store whose bytes there were last hashed (when they were stored, or by
        a scrub) before a moment: their `_id`s, those of the longest ago first."""
        ...

    async def bad(self) -> list[Image]:
        """Images whose bytes are bad, those that were found first coming first."""
        ...

    async def check(self) -> None:
        """Raises `MetadataUnavailable` when the database can't be used."""
        ...
