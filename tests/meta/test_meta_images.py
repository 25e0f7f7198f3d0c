"""Contract suite: records, lists and deletes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from visor_gateway.errors import Conflict, InvalidField, InvalidRequest, NotFound
from visor_gateway.image import Fields, change
from visor_gateway.meta.contract import ImageQuery

NOW = datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


def ids(images):
    return [image.id for image in images]


async def test_a_record_comes_back_as_it_was_stored(metadata, make_image):
    image = make_image(
        name="Ünïcode \u2028 'quoted' %",
        access="private",
        status="available",
        type="kernel",
        format="qcow2",
        store="file",
        location="file:///a%20b",
        kernel="k",
        ramdisk="r",
        size=2**62,
        checksum="abc",
        sha256="def",
        updated_at=NOW,
        uploaded_at=NOW + timedelta(microseconds=1),
        accessed_at=NOW,
        access_count=7,
        attempt_id="attempt",
        validator="v",
        attributes={"distro": "debian", "version": "007", "empty": ""},
    )
    await metadata.images.insert(image)
    assert await metadata.images.get(image.id) == image


async def test_an_unknown_record_is_none(metadata):
    assert await metadata.images.get("no such") is None


async def test_a_record_is_there_after_closing_and_opening(backend, make_image):
    image = make_image(attributes={"a": "b"})
    async with backend.open() as metadata:
        await metadata.images.insert(image)
    async with backend.open() as metadata:
        assert await metadata.images.get(image.id) == image


# --- lists -------------------------------------------------------------------------------------


@pytest.fixture
async def gallery(metadata, make_image):
    """Images of two owners, in every status, with and without optional fields."""
    images = [
        make_image(id="1", name="b", owner="alice", size=123, attributes={"distro": "debian"}),
        make_image(id="2", name="a", owner="alice", access="private", size=9, attributes={"distro": "debian"}),
        make_image(id="3", name="c", owner="bob", access="private", attributes={"distro": "centos", "arch": "x"}),
        make_image(id="4", name="a", owner="bob", status="error", created_at=NOW, sha256="ab"),
        make_image(id="5", name="d", owner="bob", status="uploading", size=1000, format="iso"),
        make_image(id="6", name="e", owner="bob", status="available", size=123, uploaded_at=NOW, format="raw"),
    ]
    for image in images:
        await metadata.images.insert(image)
    return {image.id: image for image in images}


async def test_nothing_stored_is_an_empty_list(metadata):
    assert await metadata.images.find(ImageQuery()) == []


async def test_a_list_has_whole_records(metadata, gallery):
    assert await metadata.images.find(ImageQuery(everything=True)) == list(gallery.values())


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (ImageQuery(), "1456"),
        (ImageQuery(viewer="alice"), "12456"),
        (ImageQuery(viewer="bob"), "13456"),
        (ImageQuery(viewer="nobody"), "1456"),
        (ImageQuery(everything=True), "123456"),
    ],
)
async def test_a_list_has_public_images_in_any_status_and_the_viewers_private_ones(metadata, gallery, query, expected):
    assert "".join(ids(await metadata.images.find(query))) == expected


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"name": "a"}, "24"),
        ({"_id": "3"}, "3"),
        ({"size": "123"}, "16"),
        ({"size": "0123"}, ""),
        ({"size": "123.0"}, ""),
        ({"owner": "bob", "status": "error"}, "4"),
        ({"created_at": "2026-05-06T07:08:09.123456Z"}, "4"),
        ({"uploaded_at": "2026-05-06T07:08:09.123456Z"}, "6"),
        ({"created_at": "2026-05-06T07:08:09Z"}, ""),
        ({"sha256": "ab"}, "4"),
        ({"distro": "debian"}, "12"),
        ({"distro": "centos", "arch": "x"}, "3"),
        ({"distro": "centos", "arch": "y"}, ""),
        ({"distro": "debian", "name": "a"}, "2"),
        ({"name": "A"}, ""),
        ({"name": "%"}, ""),
        ({"format": ""}, ""),
        ({"no_such": "x"}, ""),
        ({"uri": "http://gateway/images/1"}, ""),
        ({"access_count": "0"}, ""),
        ({"attempt_id": "x"}, ""),
        ({"name": "a' OR '1'='1"}, ""),
        ({"a') OR 1=1 --": "x"}, ""),
    ],
)
async def test_filters_are_equality_of_the_shown_text_and_all_must_hold(metadata, gallery, filters, expected):
    found = await metadata.images.find(ImageQuery(everything=True, filters=tuple(filters.items())))
    assert "".join(ids(found)) == expected


async def test_two_values_for_one_field_match_nothing(metadata, gallery):
    filters = (("name", "a"), ("name", "b"))
    assert await metadata.images.find(ImageQuery(everything=True, filters=filters)) == []


async def test_a_filter_does_not_widen_what_a_viewer_sees(metadata, gallery):
    found = await metadata.images.find(ImageQuery(viewer="alice", filters=(("access", "private"),)))
    assert ids(found) == ["2"]


@pytest.mark.parametrize(
    ("sort", "ascending"),
    [
        ("_id", "123456"),
        ("name", "241356"),
        ("size", "342165"),  # unset first, then by number and not by text; ties by id
        ("format", "123456"),
        ("created_at", "123564"),
        ("uploaded_at", "123456"),
        ("access", "231456"),
    ],
)
async def test_lists_sort_by_a_field_with_unset_values_first_and_ties_by_id(metadata, gallery, sort, ascending):
    up = await metadata.images.find(ImageQuery(everything=True, sort=sort))
    down = await metadata.images.find(ImageQuery(everything=True, sort=sort, descending=True))
    assert "".join(ids(up)) == ascending
    assert "".join(ids(down)) == ascending[::-1]


@pytest.mark.parametrize("sort", ["uri", "no_such", "sha256", "access_count", "distro", "name; DROP TABLE images"])
async def test_a_list_is_not_sorted_by_what_is_no_stored_field(metadata, gallery, sort):
    with pytest.raises(InvalidRequest, match="Invalid sort"):
        await metadata.images.find(ImageQuery(sort=sort))


async def test_a_page_begins_after_its_marker_and_has_at_most_the_limit(metadata, gallery):
    found = await metadata.images.find(ImageQuery(everything=True, sort="size", marker="4", limit=2))
    assert ids(found) == ["2", "1"]


async def test_an_unknown_marker_is_refused(metadata, gallery):
    with pytest.raises(InvalidRequest, match="no-such-id"):
        await metadata.images.find(ImageQuery(marker="no-such-id"))


async def test_a_marker_that_the_viewer_does_not_see_is_unknown(metadata, gallery):
    with pytest.raises(InvalidRequest):
        await metadata.images.find(ImageQuery(viewer="alice", marker="3"))


async def test_a_marker_that_is_entombed_is_unknown(metadata, gallery):
    await metadata.images.entomb("1")
    with pytest.raises(InvalidRequest):
        await metadata.images.find(ImageQuery(marker="1"))


async def test_a_marker_need_not_match_the_filters(metadata, gallery):
    found = await metadata.images.find(ImageQuery(everything=True, marker="3", filters=(("size", "123"),)))
    assert ids(found) == ["6"]


@pytest.mark.parametrize("count", [1, 40])
async def test_a_list_takes_the_same_few_statements_however_long_it_is(metadata, make_image, count):
    for number in range(count):
        await metadata.images.insert(make_image(attributes={"number": str(number)}))
    query = ImageQuery(viewer="alice", sort="name", filters=(("owner", "alice"),))
    if catalogue := getattr(metadata, "catalogue", None):
        catalogue.poll_seconds = 3600
        await metadata.images.find(query)  # asks the Meta server, and not again within the hour
    statements = []
    engine = metadata.images._database._engine._engine
    sa.event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    found = await metadata.images.find(query)
    assert len(found) == count
    # Those that meet the filters, their records, their attributes.
    assert [statement.split()[0] for statement in statements if statement != "BEGIN"] == ["SELECT"] * 3


# --- changes -----------------------------------------------------------------------------------


def changed(image, named=None, attributes=None):
    return change(image, Fields(named=named or {}, attributes=attributes or {}), now=NOW)


async def test_a_change_is_stored_and_returned(metadata, make_image):
    image = make_image(kernel="k", attributes={"a": "1", "b": "2"})
    await metadata.images.insert(image)
    wanted = changed(image, {"name": "new", "kernel": None, "type": "machine"}, {"b": "3", "c": "4"})
    assert await metadata.images.replace(wanted, expected=image) == wanted
    assert await metadata.images.get(image.id) == wanted


async def test_a_change_can_drop_an_attribute(metadata, make_image):
    image = make_image(attributes={"a": "1", "b": "2"})
    await metadata.images.insert(image)
    await metadata.images.replace(make_image(id=image.id, attributes={"b": "2"}), expected=image)
    assert (await metadata.images.get(image.id)).attributes == {"b": "2"}


async def test_of_two_changes_to_different_fields_none_is_lost(metadata, make_image):
    image = make_image(attributes={"a": "1"})
    await metadata.images.insert(image)
    await metadata.images.replace(changed(image, {"name": "new"}, {"x": "1"}), expected=image)
    await metadata.images.replace(changed(image, {"type": "kernel"}, {"y": "2"}), expected=image)
    now = await metadata.images.get(image.id)
    assert (now.name, now.type, now.attributes) == ("new", "kernel", {"a": "1", "x": "1", "y": "2"})


async def test_two_changes_together_do_not_make_a_record_too_large(metadata, make_image):
    image = make_image()
    await metadata.images.insert(image)
    first = {f"a{number}": "x" for number in range(20)}
    second = {f"b{number}": "x" for number in range(20)}
    stored = await metadata.images.replace(changed(image, attributes=first), expected=image)
    with pytest.raises(InvalidField, match="32"):
        await metadata.images.replace(changed(image, attributes=second), expected=image)
    assert await metadata.images.get(image.id) == stored


async def test_a_change_of_a_missing_record_is_refused(metadata, make_image):
    image = make_image(id="gone")
    with pytest.raises(NotFound, match=r"No image found with id 'gone'\."):
        await metadata.images.replace(image, expected=image)


@pytest.mark.parametrize(
    "state", [{"status": "error"}, {"store": "s3"}, {"location": "http://host/a"}, {"format": "iso"}]
)
async def test_a_change_of_a_record_whose_state_changed_meanwhile_is_refused(metadata, make_image, state):
    image = make_image(store="file")
    await metadata.images.insert(make_image(**{"id": image.id, "store": "file", **state}))
    with pytest.raises(Conflict):
        await metadata.images.replace(changed(image, {"name": "new"}), expected=image)
    assert (await metadata.images.get(image.id)).name == "Debian"


async def test_a_change_never_touches_owner_creation_attempt_and_counts(metadata, make_image):
    image = make_image(attempt_id="attempt", access_count=3)
    await metadata.images.insert(image)
    other = make_image(id=image.id, owner="mallory", created_at=NOW, attempt_id="other", access_count=0)
    await metadata.images.replace(other, expected=image)
    assert await metadata.images.get(image.id) == image


async def test_accesses_are_added_up(metadata, make_image):
    one, two, gone = make_image(), make_image(), make_image()
    await metadata.images.insert(one)
    await metadata.images.insert(two)
    await metadata.images.count_access({one.id: (3, NOW), gone.id: (1, NOW)})
    await metadata.images.count_access({one.id: (2, NOW + timedelta(1)), two.id: (1, NOW)})
    await metadata.images.count_access({})
    first, second = await metadata.images.get(one.id), await metadata.images.get(two.id)
    assert (first.access_count, first.accessed_at) == (5, NOW + timedelta(1))
    assert (second.access_count, second.accessed_at) == (1, NOW)
    assert first.updated_at is None


# --- deletes -----------------------------------------------------------------------------------


async def test_an_entombed_record_exists_for_nobody_but_the_sweep(metadata, make_image, make_attempt):
    image = make_image(store="file", location="file:///x", attributes={"a": "1"})
    await metadata.images.insert(image)
    assert await metadata.images.entomb(image.id) == image
    assert await metadata.images.get(image.id) is None
    assert await metadata.images.find(ImageQuery(everything=True)) == []
    for refused in (
        metadata.images.entomb(image.id),
        metadata.images.replace(image, expected=image),
        metadata.images.begin(make_attempt(image)),
    ):
        with pytest.raises(NotFound, match=image.id):
            await refused
    assert await metadata.images.entombed() == [image]


async def test_entombing_what_is_not_there_is_refused(metadata):
    with pytest.raises(NotFound, match=r"No image found with id 'x'\."):
        await metadata.images.entomb("x")


async def test_a_buried_record_leaves_nothing(metadata, make_image):
    image = make_image(attributes={"a": "1"})
    await metadata.images.insert(image)
    await metadata.images.entomb(image.id)
    await metadata.images.bury(image.id)
    await metadata.images.bury(image.id)
    assert await metadata.images.entombed() == []
    await metadata.images.insert(make_image(id=image.id))
    assert (await metadata.images.get(image.id)).attributes == {}


async def test_a_record_that_is_not_entombed_is_not_buried(metadata, make_image):
    image = make_image()
    await metadata.images.insert(image)
    await metadata.images.bury(image.id)
    assert await metadata.images.get(image.id) == image


async def test_an_unfinished_delete_outlives_the_daemon(backend, make_image):
    image = make_image()
    async with backend.open() as metadata:
        await metadata.images.insert(image)
        await metadata.images.entomb(image.id)
    async with backend.open() as metadata:
        assert await metadata.images.entombed() == [image]


async def test_a_usable_database_passes_its_check(metadata):
    await metadata.check()
    await metadata.images.check()
