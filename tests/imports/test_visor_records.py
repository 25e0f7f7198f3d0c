"""What is made of records of VISOR, from its Meta server and from a dump of its database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from servers.recorded import exchange

from visor_gateway.cli.imports.item import Item, Skipped, Unfit
from visor_gateway.cli.imports.mysqldump import read_rows
from visor_gateway.cli.imports.visor import Reader, read_list, with_zone

DUMP = (Path(__file__).parent / "visor" / "visor_meta.sql").read_bytes()
AVAILABLE = "0da751f8-2039-495d-8567-8cc291f9d72a"


def read(found: Any, store: str | None = None) -> Item | Skipped:
    [item] = Reader(store=store).read([found])
    return item


def recorded() -> dict[str, Any]:
    """The record of the Meta server that was recorded: without bytes."""
    [image] = read_list(exchange("Meta", "detailed list").answer)
    assert isinstance(image, dict)
    return image


def available(**fields: Any) -> dict[str, Any]:
    known = {"_id": AVAILABLE, "status": "available", "size": 11, "checksum": "1a8170f6b425d667b1aba297dbe4ff88"}
    return recorded() | known | {"store": "file", "location": f"file:///srv/visor/{AVAILABLE}.iso"} | fields


def reason(**fields: Any) -> str:
    item = read(available(**fields))
    assert isinstance(item, Skipped)
    return item.reason


# --- records ---------------------------------------------------------------------------------------


def test_the_record_that_was_recorded_becomes_fields_and_attributes() -> None:
    assert read(recorded()) == Item(
        source_id="d12e6c03-f15c-4249-8b9a-b7390653ea94",
        fields={
            "name": "CentOS 6.2", "architecture": "i386", "access": "public", "format": "iso", "distro": "centos",
            "visor_id": "d12e6c03-f15c-4249-8b9a-b7390653ea94", "visor_owner": "foo",
            "visor_created_at": "2026-11-22T10:09:46.000000Z",
        },
        has_bytes=False,
    )  # fmt: skip


def test_an_image_with_bytes_has_a_size_and_a_digest_and_no_location() -> None:
    item = read(available(others=None), "s3")
    assert isinstance(item, Item)
    assert (item.has_bytes, item.size) == (True, 11)
    assert item.digests == {"md5": "1a8170f6b425d667b1aba297dbe4ff88"}
    assert item.fields["store"] == "s3"
    assert "location" not in item.fields
    item = read(available(checksum="A" * 64))
    assert isinstance(item, Item)
    assert item.digests == {"sha256": "a" * 64}


def test_a_reference_stays_one() -> None:
    item = read(available(store="http", location="http://mirror.example/x.iso", checksum='"etag"'), "s3")
    assert isinstance(item, Item)
    assert (item.has_bytes, item.size, item.digests) == (False, None, {})
    assert (item.fields["store"], item.fields["location"]) == ("http", "http://mirror.example/x.iso")


def test_kernel_and_ramdisk_are_required_by_their_ids_there() -> None:
    item = read(available(kernel=AVAILABLE, ramdisk=None))
    assert isinstance(item, Item)
    assert item.requires == {"kernel": AVAILABLE}
    assert "kernel" not in item.fields


def test_custom_attributes_come_as_text_or_among_the_fields_and_unfit_ones_are_named() -> None:
    item = read(available(others='{"os":"debian","Version":"6","note":"a\\nb","n":7}', visor_id="x"))
    assert isinstance(item, Item)
    assert (item.fields["os"], item.fields["n"], item.fields["distro"]) == ("debian", "7", "centos")
    assert item.fields["visor_id"] == AVAILABLE
    assert item.left_out == (
        "'Version': no name that an attribute can have",
        "'note': it holds a control character",
        "'visor_id': the name means something else here",
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"_id": "../x"}, "_id '../x' is no UUID"),
        ({"name": None}, "no 'name'"),
        ({"name": " x"}, "name ' x': it is empty, or begins or ends with a blank"),
        ({"architecture": "vax"}, "invalid 'architecture': 'vax'"),
        ({"access": "world"}, "invalid 'access': 'world'"),
        ({"format": "doc"}, "invalid 'format': 'doc'"),
        ({"type": ["kernel"]}, "invalid 'type': '['kernel']'"),
        ({"status": "done"}, "invalid 'status': 'done'"),
        ({"status": "uploading"}, "status 'uploading': it has no bytes that are whole"),
        ({"status": None}, "status 'error': it has no bytes that are whole"),
        ({"size": -1}, "invalid 'size': '-1'"),
        ({"created_at": "yesterday"}, "invalid 'created_at': 'yesterday'"),
        ({"kernel": "x"}, "invalid 'kernel': 'x'"),
        ({"checksum": "abc"}, "checksum 'abc' is neither MD5 nor SHA-256"),
        ({"others": "{"}, "invalid 'others': '{'"),
        ({"store": "http", "location": None}, "it is a reference without a location"),
        ({"store": "http", "location": "file:///etc/passwd"}, "Invalid location: its scheme must be http or https"),
        ({"store": "http", "location": "http://a:b@c/"}, "Invalid location: it may not carry credentials"),
        ({f"a{n}": "x" for n in range(40)}, "more custom attributes than a record may have"),
    ],
)
def test_what_has_no_counterpart_is_named(fields: dict[str, Any], expected: str) -> None:
    assert reason(**fields) == expected


def test_an_image_that_nobody_called_public_is_private() -> None:
    item = read(available(access=None))
    assert isinstance(item, Item)
    assert item.fields["access"] == "private"


def test_what_is_no_image_or_comes_twice_is_skipped() -> None:
    assert read(7) == Skipped(reason="it is no object")
    _, second = Reader(store=None).read([available()] * 2)
    assert second == Skipped(source_id=AVAILABLE, name="CentOS 6.2", reason="it is listed twice")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"images": 1}', b"\xff"])
def test_an_answer_that_is_no_list_is_refused(body: bytes) -> None:
    with pytest.raises(Unfit, match=r"no JSON|no list"):
        read_list(body)


# --- dumps -----------------------------------------------------------------------------------------


TABLE = "CREATE TABLE `images` (\n `_id` varchar(45), `size` int);\n"


def dump(values: str, before: str = "", after: str = ";\n") -> bytes:
    return f"{before}{TABLE}INSERT INTO `images` VALUES {values}{after}".encode()


def test_a_dump_has_rows_by_column() -> None:
    rows = read_rows(DUMP, "images")
    assert [row["name"] for row in rows] == ["with bytes", "meta only", 'it\'s; "quoted" \\ `é`', "private"]
    assert rows[0]["size"] == 11
    assert rows[0]["others"] is None
    assert json.loads(rows[2]["others"]) == {"note": "don't; stop"}
    items = Reader(store=None).read(with_zone(row) for row in rows)
    assert [type(item) for item in items] == [Item] * 4
    assert items[0].fields["visor_created_at"] == "2012-07-02T09:14:46.000000Z"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("NULL", None), ("'a'", "a"), ("''", ""), ("7", 7), ("-7", -7), ("1.5", 1.5), ("1e3", 1000.0),
        (r"'\0\n\r\t\Z\b'", "\0\n\r\t\x1a\b"), (r"'\\\'\"\%'", "\\'\"%"), ("'it''s'", "it's"), ("'a\nb'", "a\nb"),
        ("'-- x'", "-- x"), ("'/* x */;'", "/* x */;"), ("'),('", "),("),
    ],
)  # fmt: skip
def test_values_are_what_mysql_would_read(written: str, value: object) -> None:
    assert read_rows(dump(f"('x',{written})"), "images") == [{"_id": "x", "size": value}]


@pytest.mark.parametrize(
    ("before", "rows"),
    [
        ("", "('a',1),('b',2)"),
        ("-- INSERT INTO `images` VALUES ('no',0);\n", "('a',1),('b',2)"),
        ("/*!40000 ALTER TABLE `images` DISABLE KEYS */;\n/* it's */\n# it's\n", "('a',1),('b',2)"),
        ("INSERT INTO `x` VALUES ('INSERT INTO `images` VALUES (0);'),(\"it's\");\n", "('a',1),('b',2)"),
        ("SET @saved = @@TIME_ZONE;\nDROP TABLE IF EXISTS `images`;\n", "\n('a',1),\n('b',2)"),
        ("", "('a',1);\nINSERT IGNORE INTO `images` (`_id`, `size`) VALUES ('b',2)"),
        ("", "('a',1);\nREPLACE INTO `images` VALUES ('b',2)"),
    ],
)
def test_only_statements_of_the_table_count(before: str, rows: str) -> None:
    assert read_rows(dump(rows, before), "images") == [{"_id": "a", "size": 1}, {"_id": "b", "size": 2}]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (dump("('a',1)", after=""), "it ends in the middle of a statement: it was cut"),
        (dump("('a',1", after=""), "it ends in the middle of a statement: it was cut"),
        (dump("('a", after=""), "a text or a name does not end, from line 3 on: the dump was cut"),
        (dump("('a')"), "a row has 1 values for 2 columns, at line 3"),
        (dump("('a',_binary 'x')"), "'_binary' was not expected in line 3"),
        (dump("('a',0x4142)"), "'0' was not expected in line 3"),
        (dump("('a',NOW())"), "'NOW' was not expected in line 3"),
        (dump("('a',1)('b',2)"), "'(' was not expected in line 3"),
        (dump("('a',1),"), "';' was not expected in line 3"),
        (dump("('a',1) ON DUPLICATE KEY UPDATE size=1"), "'ON' was not expected in line 3"),
        (dump("('a',1)") + dump("('a',1)"), "it has the table `images` twice: dump one database alone"),
        (b"INSERT INTO `images` VALUES ('a');", "it does not say the columns of `images`"),
        (b"INSERT INTO `images` SELECT 1;", "'SELECT' was not expected in line 1"),
        (b"CREATE TABLE `users` (`_id` int);", "it has no table `images`"),
        (b"", "it has no table `images`"),
        (b"\xff", "byte 0 is not UTF-8: dump with --default-character-set=utf8mb4"),
    ],
)
def test_what_mysqldump_does_not_write_is_refused_with_its_place(written: bytes, expected: str) -> None:
    with pytest.raises(Unfit) as caught:
        read_rows(written, "images")
    assert str(caught.value).startswith(expected)


def test_a_large_dump_takes_a_time_in_proportion() -> None:
    values = ",".join(f"('{n:08}{'x' * 200}',{n})" for n in range(5_000))
    assert len(read_rows(dump(values), "images")) == 5_000
