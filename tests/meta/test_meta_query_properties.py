"""Properties of lists, against a model in Python."""

from __future__ import annotations

import tempfile
import uuid
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from visor_gateway.image import SHOWN, Image, timestamp
from visor_gateway.meta.contract import ImageQuery
from visor_gateway.meta.query import SORTABLE
from visor_gateway.meta.sql import open_metadata

# Few values, so that ties and matches are frequent.
text = st.sampled_from(["a", "A", "b", "é", "10", "9", "", "\U0001f600", "\uffff"])
moment = st.sampled_from([datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC)])
image = st.builds(
    Image,
    id=st.uuids(version=4).map(str),
    name=text,
    architecture=st.sampled_from(["i386", "x86_64"]),
    owner=st.sampled_from(["alice", "bob"]),
    access=st.sampled_from(["public", "private"]),
    status=st.sampled_from(["locked", "available"]),
    format=st.none() | st.sampled_from(["iso", "raw"]),
    size=st.none() | st.sampled_from([0, 9, 10, 2**53 + 1, 2**53 + 2]),
    created_at=moment,
    uploaded_at=st.none() | moment,
    attributes=st.dictionaries(st.sampled_from(["distro", "version"]), text),
)
filters = st.lists(
    st.tuples(st.just("size"), st.sampled_from(["9", "10", "010", str(2**53 + 1)]))
    | st.tuples(st.sampled_from(["name", "distro", "version"]), text)
    | st.tuples(st.just("created_at"), moment.map(timestamp))
    | st.tuples(st.just("owner"), st.sampled_from(["alice", "bob"]))
    | st.tuples(st.just("access"), st.sampled_from(["public", "private"])),
    max_size=2,
).map(tuple)
query = st.builds(
    ImageQuery,
    viewer=st.none() | st.sampled_from(["alice", "bob"]),
    everything=st.booleans(),
    filters=filters,
    sort=st.sampled_from(SORTABLE),
    descending=st.booleans(),
    limit=st.integers(1, 5),
)


def value(image: Image, name: str) -> object:
    found = getattr(image, "id" if name == "_id" else name) if name in SHOWN else image.attributes.get(name)
    return timestamp(found) if isinstance(found, datetime) else found


def model(images: list[Image], query: ImageQuery) -> list[str]:
    def seen(image: Image) -> bool:
        return query.everything or image.access == "public" or image.owner == query.viewer

    def matches(image: Image) -> bool:
        found = [(value(image, name), wanted) for name, wanted in query.filters]
        return all(have is not None and str(have) == wanted for have, wanted in found)

    def key(image: Image) -> tuple[bool, object, str]:
        have = value(image, query.sort)
        # By code point, as databases compare UTF-8.
        return have is not None, have.encode() if isinstance(have, str) else have, image.id

    chosen = [image for image in images if seen(image) and matches(image)]
    return [image.id for image in sorted(chosen, key=key, reverse=query.descending)]


async def all_pages(images: list[Image], query: ImageQuery) -> tuple[list[str], list[str], list[int]]:
    with tempfile.TemporaryDirectory() as directory:
        async with open_metadata(f"sqlite:///{directory}/visor.db", Path(directory) / "key") as metadata:
            for image in images:
                await metadata.images.insert(image)
            whole = await metadata.images.find(msgspec.structs.replace(query, limit=1000))
            paged: list[Image] = []
            lengths = []
            while True:
                marker = paged[-1].id if paged else None
                page = await metadata.images.find(msgspec.structs.replace(query, marker=marker))
                if not page:
                    break
                paged += page
                lengths.append(len(page))
            assert all(image in images for image in whole)
            return [image.id for image in whole], [image.id for image in paged], lengths


@settings(max_examples=120, deadline=None, derandomize=True)
@given(images=st.lists(image, max_size=14, unique_by=lambda image: image.id), query=query, few=st.integers(0, 9))
def test_filters_and_order_are_the_models_and_all_pages_together_are_the_whole_list(images, query, few):
    # Few images are put in order, of many a page is read off an index.
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr("visor_gateway.meta.query.FEW", few)
        whole, paged, lengths = trio.run(all_pages, images, query)
    assert whole == model(images, query)
    assert paged == whole
    assert all(length == query.limit for length in lengths[:-1])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    name=st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()),
    attributes=st.dictionaries(
        st.from_regex(r"[a-z_][a-z0-9_]{0,63}", fullmatch=True).filter(lambda name: name not in SHOWN),
        st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=30),
        max_size=5,
    ),
)
def test_any_text_is_stored_and_found_as_it_is(name, attributes):
    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory:
            async with open_metadata(f"sqlite:///{directory}/visor.db", Path(directory) / "key") as metadata:
                stored = Image(
                    id=str(uuid.uuid4()),
                    name=name,
                    architecture="i386",
                    owner="a",
                    created_at=datetime.now(UTC),
                    attributes=attributes,
                )
                await metadata.images.insert(stored)
                filters = (("name", name), *((k, v) for k, v in attributes.items() if k != "sha256"))
                assert await metadata.images.find(ImageQuery(filters=filters)) == [stored]

    trio.run(main)
