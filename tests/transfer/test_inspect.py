"""What ingest refuses by looking at the bytes, whatever way they are cut."""

from __future__ import annotations

import itertools
import random
import shutil
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visor_gateway.errors import UnsafeImage
from visor_gateway.transfer import inspect
from visor_gateway.transfer.inspect import PIECE_SIZE, open_inspector

QEMU_IMG = shutil.which("qemu-img")
needs_oslo = pytest.mark.skipif(not inspect.available, reason="oslo.utils is not installed")
needs_qemu = pytest.mark.skipif(QEMU_IMG is None, reason="qemu-img is not installed")
pytestmark = needs_oslo

EVERY_FORMAT = (None, "none", "iso", "raw", "qcow2", "vhd", "vhdx", "vdi", "vmdk", "ova", "ami", "aki", "ari")


# --- headers made by hand ------------------------------------------------------------------------


def qcow2(*, version: int = 3, backing: int = 0, features: int = 0, length: int = 200_000) -> bytes:
    head = struct.pack(">4sIQIIQ", b"QFI\xfb", version, backing, 0, 16, 1 << 30)
    head = head.ljust(72, b"\0") + struct.pack(">Q", features)
    return head.ljust(length, b"\0")


DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="{kind}"

# Extent description
{extent}

# The Disk Data Base
#DDB
ddb.virtualHWVersion = "4"
"""


def descriptor(kind: str = "monolithicSparse", extent: str = 'RW 2048 SPARSE "disk.vmdk"', extra: str = "") -> bytes:
    return (DESCRIPTOR.format(kind=kind, extent=extent) + extra).encode()


def vmdk_header(*, at_end: bool = False, gd: int = 100, offset: int = 1) -> bytes:
    gd = 0xFFFFFFFFFFFFFFFF if at_end else gd
    return struct.pack("<4sIIQQQQIQQ", b"KDMV", 3, 0, 2048, 128, offset, 20, 512, 0, gd).ljust(512, b"\0")


def vmdk(text: bytes | None = None, *, at_end: bool = False, offset: int = 1) -> bytes:
    text = descriptor("streamOptimized" if at_end else "monolithicSparse") if text is None else text
    return vmdk_header(at_end=at_end, offset=offset) + text.ljust(20 * 512, b"\0") + bytes(100_000)


def vmdk_footer(header: bytes | None = None, *, marker: int = 3) -> bytes:
    return (
        struct.pack("<QII", 1, 0, marker).ljust(512, b"\0") + (vmdk_header() if header is None else header) + bytes(512)
    )


def vdi(kind: int = 1) -> bytes:
    return (bytes(64) + struct.pack("<IIII", 0xBEDA107F, 0x10001, 0x190, kind)).ljust(4096, b"\0")


def vhd_footer(kind: int) -> bytes:
    return (b"conectix".ljust(60, b"\0") + struct.pack(">I", kind)).ljust(512, b"\0")


def vhdx(*, parent: bool = False, metadata: bool = True) -> bytes:
    size = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
    locator = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
    region = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
    items = [size + struct.pack("<III4x", 0x10000, 8, 0)]
    if parent:
        items.insert(0, locator + struct.pack("<III4x", 0x11000, 64, 0))
    table = b"metadata" + struct.pack("<HH20x", 0, len(items)) + b"".join(items)
    regions = struct.pack("<IIII", 0x69676572, 0, int(metadata), 0)
    regions += (region if metadata else bytes(16)) + struct.pack("<QII", 2 << 20, 1 << 20, 1)
    image = bytearray(3 << 20)
    image[:8] = b"vhdxfile"
    image[192 * 1024 : 192 * 1024 + len(regions)] = regions
    image[2 << 20 : (2 << 20) + len(table)] = table
    return bytes(image)


def iso(*, hybrid: bool = False, start: bytes = b"") -> bytes:
    boot = start.ljust(510, b"\0") + (b"\x55\xaa" if hybrid else b"\0\0")
    return boot.ljust(32 * 1024, b"\0") + b"\x01CD001\x01".ljust(2048, b"\0") + bytes(40_000)


def kernel() -> bytes:
    """A Linux kernel: the mark of a boot sector, and code where a partition table would be."""
    return random.Random(1).randbytes(510) + b"\x55\xaa" + b"HdrS" + bytes(100_000)


def fixed_vhd(size: int = 300_000) -> bytes:
    return bytes(size) + vhd_footer(2)


ACCEPTED: dict[str, tuple[bytes, str]] = {
    "qcow2": (qcow2(), "qcow2"),
    "qcow2 of version 2": (qcow2(version=2), "qcow2"),
    "qcow2, dirty and compressed otherwise": (qcow2(features=0b1001), "qcow2"),
    "vmdk": (vmdk(), "vmdk"),
    "streamed vmdk": (vmdk(at_end=True) + vmdk_footer(), "vmdk"),
    "vdi": (vdi(), "vdi"),
    "static vdi": (vdi(2), "vdi"),
    "vhdx": (vhdx(), "vhdx"),
    "dynamic vhd": (vhd_footer(3) + bytes(2048), "vhd"),
    "iso": (iso(), "iso"),
}
PLAIN: dict[str, bytes] = {
    "noise": random.Random(2).randbytes(150_000),
    "zeros": bytes(70_000),
    "one byte": b"x",
    "kernel": kernel(),
    "text": b"version 1 of nothing\n" * 5000,
    "text that turns into something else": b"plain text\n" * 60 + b"\xff\xfe" * 1000,
    "luks": b"LUKS\xba\xbe\0\x02".ljust(80_000, b"\0"),
    "boot disk": (bytes(446) + b"\x80" + bytes(63) + b"\x55\xaa").ljust(90_000, b"\0"),
}
UNSAFE: dict[str, bytes] = {
    "qcow2 with a backing file": qcow2(backing=512),
    "qcow2 of version 2 with a backing file": qcow2(version=2, backing=512),
    "qcow2 with a data file": qcow2(features=0b100),
    "qcow2 with an unknown feature": qcow2(features=1 << 40),
    "qcow2 of version 1": qcow2(version=1),
    "qcow2 cut after its header": qcow2(backing=104, length=200),
    "qed": b"QED\0".ljust(100_000, b"\0"),
    "vmdk descriptor": descriptor("monolithicFlat", 'RW 2048 FLAT "/etc/passwd" 0'),
    "vmdk descriptor of a few bytes": b'version=1\nRW 1 FLAT "/etc/passwd" 0\n',
    "vmdk descriptor with CRLF and blanks": b"# x\r\n  \r\n" + descriptor("vmfs").replace(b"\n", b"\r\n"),
    "vmdk descriptor followed by binary": descriptor("monolithicFlat", 'RW 1 FLAT "x" 0') + bytes(100) + b"\xff" * 9000,
    "vmdk descriptor behind a long comment": b"#" * 4000 + b"\n" + descriptor("monolithicFlat", 'RW 1 FLAT "x" 0'),
    "vmdk descriptor that calls itself sparse": b"#" * 4000 + b"\n" + descriptor(),
    "vmdk with a foreign path": vmdk(descriptor(extent='RW 1 SPARSE "/dev/sda"')),
    "vmdk with a flat extent": vmdk(descriptor(extent='RW 1 FLAT "x" 0')),
    "vmdk with a parent": vmdk(descriptor(extra='parentFileNameHint="base.vmdk"\n')),
    "vmdk of another subformat": vmdk(descriptor("twoGbMaxExtentSparse")),
    "vmdk without a descriptor": vmdk(b""),
    "vmdk with its descriptor elsewhere": vmdk(offset=3),
    "vmdk with a line nobody knows": vmdk(descriptor(extra="open sesame\n")),
    "vmdk cut in its descriptor": vmdk()[:2000],
    "vmdk of esx": b"COWD".ljust(3000, b"\0"),
    "streamed vmdk without a footer": vmdk(at_end=True) + bytes(1536),
    "streamed vmdk with another descriptor in its footer": vmdk(at_end=True) + vmdk_footer(vmdk_header(offset=7)),
    "streamed vmdk with a footer of no use": vmdk(at_end=True) + vmdk_footer(vmdk_header(at_end=True)),
    "streamed vmdk with a wrong marker": vmdk(at_end=True) + vmdk_footer(marker=1),
    "vdi of differences": vdi(4),
    "vhd of differences": vhd_footer(4) + bytes(2048),
    "vhdx of differences": vhdx(parent=True),
    "vhdx without metadata": vhdx(metadata=False),
    "vhdx cut before its metadata": vhdx()[: 1 << 20],
    "vhdx without a region table": b"vhdxfile".ljust(400_000, b"\0"),
    "qcow2 that is a vdi too": qcow2()[:64] + vdi()[64:] + bytes(9000),
}


def cut(image: bytes, size: int) -> Iterator[bytes]:
    return (image[at : at + size] for at in range(0, len(image), size))


def examine(blocks: Iterable[bytes], declared: str | None) -> None:
    inspector = open_inspector(declared)
    for block in blocks:
        inspector.feed(block)
    inspector.finish()


def verdict(blocks: Iterable[bytes], declared: str | None) -> str:
    try:
        examine(blocks, declared)
    except UnsafeImage as exc:
        return exc.message
    return "taken"


# --- what is taken and what is refused -------------------------------------------------------------


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_image_of_its_declared_format_is_taken(name: str) -> None:
    image, declared = ACCEPTED[name]
    examine(cut(image, 5000), declared)


@pytest.mark.parametrize("declared", [None, "none", "ova", "ami", "aki", "ari", "something else"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_a_format_that_says_nothing_of_the_bytes_contradicts_none(name: str, declared: str | None) -> None:
    examine(cut(ACCEPTED[name][0], 70_000), declared)


@pytest.mark.parametrize(
    ("name", "declared"),
    [
        (name, declared)
        for name, (_, found) in ACCEPTED.items()
        for declared in ("iso", "raw", "qcow2", "vhd", "vhdx", "vdi", "vmdk")
        if declared != found and (declared, found) != ("raw", "iso")
    ],
)
def test_bytes_of_another_format_than_declared_are_refused(name: str, declared: str) -> None:
    image, _ = ACCEPTED[name]
    with pytest.raises(UnsafeImage, match=f"declared as {declared}"):
        examine([image], declared)


@pytest.mark.parametrize("declared", [None, "raw", "aki", "ova"])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_bytes_are_taken_as_raw(name: str, declared: str | None) -> None:
    examine(cut(PLAIN[name], 4096), declared)


@pytest.mark.parametrize("declared", ["iso", "qcow2", "vhd", "vhdx", "vdi", "vmdk"])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_bytes_are_refused_as_anything_else(name: str, declared: str) -> None:
    with pytest.raises(UnsafeImage, match=f"declared as {declared}, and its bytes are not in that format"):
        examine(cut(PLAIN[name], 4096), declared)


@pytest.mark.parametrize("declared", EVERY_FORMAT)
@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_image_is_refused_whatever_it_is_declared_as(name: str, declared: str | None) -> None:
    with pytest.raises(UnsafeImage):
        examine(cut(UNSAFE[name], 30_000), declared)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("qcow2 with a backing file", "backing file"),
        ("qcow2 with a data file", "external data file"),
        ("qcow2 with an unknown feature", "features that are not known"),
        ("vmdk descriptor", "names its data in other files"),
        ("vmdk with a foreign path", "not that of a single self-contained file"),
        ("vmdk with a flat extent", "extent outside itself"),
        ("vmdk with a parent", "has a parent"),
        ("streamed vmdk with another descriptor in its footer", "footer and its header contradict"),
        ("vhdx of differences", "has a parent"),
        ("vdi of differences", "depends on another image"),
        ("qcow2 that is a vdi too", "several formats at once: qcow2, vdi"),
        ("vhdx cut before its metadata", "end too early"),
    ],
)
def test_the_message_tells_what_was_wrong(name: str, cause: str) -> None:
    assert cause in verdict([UNSAFE[name]], None)


@pytest.mark.parametrize("declared", [None, "iso", "raw"])
def test_an_iso_that_is_a_boot_disk_too_is_taken(declared: str | None) -> None:
    examine([iso(hybrid=True)], declared)


def test_an_iso_that_begins_as_a_qcow2_is_refused_as_iso() -> None:
    with pytest.raises(UnsafeImage, match="in the format qcow2"):
        examine([iso(start=qcow2(length=200))], "iso")


@pytest.mark.parametrize("size", [300_000, 3 * PIECE_SIZE, 3 * PIECE_SIZE - 512, 100])
def test_a_vhd_of_fixed_size_is_known_by_its_end(size: int) -> None:
    examine(cut(fixed_vhd(size), 777), "vhd")
    examine(cut(fixed_vhd(size)[:-1], 777), "vhd")  # old ones have a footer of 511 bytes
    examine(cut(fixed_vhd(size), 777), "raw")


def test_a_vhd_whose_end_is_missing_is_refused() -> None:
    with pytest.raises(UnsafeImage, match="declared as vhd"):
        examine([fixed_vhd()[:-100]], "vhd")


def test_an_empty_image_is_plain() -> None:
    examine([], None)
    examine([b""], "raw")
    with pytest.raises(UnsafeImage):
        examine([], "qcow2")


# --- how it is done --------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [None, "raw", "qcow2", "iso", "vdi"])
def test_nothing_is_looked_at_after_the_decision(declared: str | None) -> None:
    image = {"qcow2": qcow2(), "iso": iso(), "vdi": vdi().ljust(PIECE_SIZE, b"\0")}.get(
        declared or "", bytes(PIECE_SIZE)
    )
    inspector = open_inspector(declared)
    inspector.feed(image[:PIECE_SIZE])
    assert inspector.decided
    inspector.feed(qcow2(backing=1))
    inspector.finish()


#: The others are too short for a piece, or are judged by what comes later.
JUDGED_AT_ONCE = [
    name for name, image in UNSAFE.items() if len(image) >= PIECE_SIZE and not name.startswith(("streamed", "vhdx"))
]


@pytest.mark.parametrize("name", JUDGED_AT_ONCE)
def test_a_refusal_comes_with_the_first_piece(name: str) -> None:
    inspector = open_inspector(None)
    with pytest.raises(UnsafeImage):
        inspector.feed(UNSAFE[name][:PIECE_SIZE])


def test_every_kind_of_block_is_taken() -> None:
    for kind in (bytes, bytearray, memoryview):
        assert "backing" in verdict([kind(qcow2(backing=1))], None)  # type: ignore[list-item]


@pytest.mark.parametrize("declared", ["vhd", "vmdk"])
def test_memory_is_bounded_while_the_end_is_awaited(declared: str) -> None:
    inspector = open_inspector(declared)
    if declared == "vmdk":
        inspector.feed(vmdk(at_end=True))
    block = bytes(1 << 20)
    for _ in range(8):
        inspector.feed(block)
    assert not inspector.decided
    assert len(inspector._piece) + len(inspector._tail) <= PIECE_SIZE + 1536
    if declared == "vmdk":
        assert sum(inspector._parser.context_info.values()) < 1 << 20


def test_without_the_parsers_nothing_is_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "available", False)
    examine([qcow2(backing=1)], "iso")


WITHOUT_PARSERS = """
import sys
sys.modules["oslo_utils"] = None
from visor_gateway.transfer import inspect
inspector = inspect.open_inspector("raw")
inspector.feed(b"QFI\\xfb" + bytes(100_000))
inspector.finish()
sys.exit(inspect.available)
"""


def test_the_package_of_the_parsers_may_be_missing() -> None:
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", WITHOUT_PARSERS], check=True, timeout=60, cwd=root)


IMAGES = [image for image, _ in ACCEPTED.values()] + list(PLAIN.values()) + list(UNSAFE.values()) + [fixed_vhd()]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_verdict_does_not_depend_on_how_the_bytes_are_cut(data: st.DataObject) -> None:
    image = data.draw(st.sampled_from(IMAGES))
    declared = data.draw(st.sampled_from(EVERY_FORMAT))
    near = st.sampled_from([1, 4, 63, 64, 511, 512, 513, 32 * 1024, PIECE_SIZE - 1, PIECE_SIZE, 2 << 20])
    cuts = data.draw(st.lists(st.one_of(near, st.integers(0, len(image))), max_size=12))
    edges = [0, *sorted(min(edge, len(image)) for edge in cuts), len(image)]
    blocks = [image[start:end] for start, end in itertools.pairwise(edges)]
    assert verdict(blocks, declared) == verdict([image], declared)


@settings(max_examples=60, deadline=None)
@given(
    image=st.binary(max_size=2000), start=st.sampled_from([b"", b"KDMV\3\0\0\0", b"vhdxfile", b"QFI\xfb", b"version=1"])
)
def test_no_bytes_raise_anything_but_unsafe_image(image: bytes, start: bytes) -> None:
    verdict([start + image], None)


# --- images that QEMU made -------------------------------------------------------------------------


def qemu_img(*arguments: str | Path) -> None:
    assert QEMU_IMG is not None
    subprocess.run([QEMU_IMG, *map(str, arguments)], check=True, timeout=60, stdout=subprocess.DEVNULL)


def qemu_image(directory: Path, kind: str, *options: str) -> bytes:
    path = directory / "image"
    qemu_img("create", "-q", "-f", kind, *options, path, "16M")
    return path.read_bytes()


def assert_refused(image: bytes, cause: str) -> None:
    """However its bytes are cut, and with one warning where the operator has it kept."""
    (found,) = {verdict(cut(image, size), None) for size in (1, 2, 511, 512, 513, 65_535, 65_536, 65_537, len(image))}
    assert cause in found
    for size in (1, 65_537, len(image)):
        told: list[str] = []
        inspector = open_inspector(None, told.append)
        for block in cut(image, size):
            inspector.feed(block)
        inspector.finish()
        assert told == [found.replace("is refused", "would be refused")]


@needs_qemu
@pytest.mark.parametrize(
    ("declared", "kind", "options"),
    [
        ("qcow2", "qcow2", ()),
        ("qcow2", "qcow2", ("-o", "compat=0.10")),
        ("qcow2", "qcow2", ("-o", "cluster_size=512,lazy_refcounts=on,compression_type=zlib")),
        ("raw", "raw", ()),
        ("vmdk", "vmdk", ()),
        ("vmdk", "vmdk", ("-o", "subformat=streamOptimized")),
        ("vdi", "vdi", ()),
        ("vdi", "vdi", ("-o", "static=on")),
        ("vhdx", "vhdx", ()),
        ("vhdx", "vhdx", ("-o", "subformat=fixed")),
        ("vhd", "vpc", ()),
        ("vhd", "vpc", ("-o", "subformat=fixed")),
    ],
)
def test_real_images_are_taken(tmp_path: Path, declared: str, kind: str, options: tuple[str, ...]) -> None:
    image = qemu_image(tmp_path, kind, *options)
    examine(cut(image, 100_000), declared)
    examine(cut(image, 100_000), None)
    other = "vdi" if declared != "vdi" else "qcow2"
    assert f"declared as {other}" in verdict([image], other)


@needs_qemu
@pytest.mark.parametrize(
    ("kind", "options", "cause"),
    [
        ("qcow2", ("-o", "data_file={directory}/data.raw"), "external data file"),
        ("vmdk", ("-o", "subformat=monolithicFlat"), "names its data in other files"),
        ("vmdk", ("-o", "subformat=twoGbMaxExtentSparse"), "names its data in other files"),
        ("qcow", (), "features that are not known"),
        ("qed", (), "this format is not taken"),
    ],
)
def test_real_images_that_refer_elsewhere_are_refused(
    tmp_path: Path, kind: str, options: tuple[str, ...], cause: str
) -> None:
    image = qemu_image(tmp_path, kind, *(option.format(directory=tmp_path) for option in options))
    assert_refused(image, cause)


@needs_qemu
@pytest.mark.parametrize(("kind", "cause"), [("qcow2", "backing file"), ("vmdk", "has a parent")])
def test_real_images_over_another_one_are_refused(tmp_path: Path, kind: str, cause: str) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    qemu_img("create", "-q", "-f", kind, base, "16M")
    qemu_img("create", "-q", "-f", kind, "-b", base, "-F", kind, top)
    assert_refused(top.read_bytes(), cause)


# --- where the operator has unsafe images kept ----------------------------------------------------


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("size", [511, 65_537, 10**9])
def test_where_nothing_is_refused_one_warning_tells_what_would_be(name: str, size: int) -> None:
    told: list[str] = []
    inspector = open_inspector(None, told.append)
    for block in cut(UNSAFE[name], size):
        inspector.feed(block)
    inspector.finish()
    assert told == [verdict([UNSAFE[name]], None).replace("is refused", "would be refused")]


def test_an_image_that_is_safe_is_worth_no_warning() -> None:
    told: list[str] = []
    inspector = open_inspector("raw", told.append)
    inspector.feed(bytes(100_000))
    inspector.finish()
    assert told == []
