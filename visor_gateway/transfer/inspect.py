"""What an image's bytes are, judged while they arrive. Sans-IO.

A hypervisor that opens an image guesses its format from the bytes, and some formats name further files to open. So
an image is refused when its bytes contradict the declared format, or when they refer to data outside themselves:
a qcow2 backing or data file, a VMDK extent or parent, a differencing VHD, VHDX or VDI.

The parsers are those of oslo.utils (extra `inspect`); without it nothing is examined. They parse what a piece holds
and never look back, so they would judge by how the client's bytes happened to be cut: here they are always given the
same pieces. Every format shows itself in the first piece; most are judged there, and later blocks are not looked at.
A VHDX is judged when its metadata has passed (2 MiB as a rule), a streamed VMDK and a fixed VHD by their last bytes.
"""

from __future__ import annotations

import importlib
import re
import struct
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from ..errors import UnsafeImage

Block: TypeAlias = bytes | bytearray | memoryview

try:
    _oslo: Any = importlib.import_module("oslo_utils.imageutils.format_inspector")
except ImportError:
    _oslo = None

#: Whether images are examined at all.
available: Final[bool] = _oslo is not None

PIECE_SIZE: Final = 64 * 1024  # bytes; holds all that any format is recognised by, the last at 32 KiB
_TAIL_SIZE: Final = 1536  # bytes; a VMDK's footer, a VHD's is shorter
_SECTOR: Final = 512

#: Formats that bytes are recognised as. QED is in no list of ours and can have a backing file. LUKS and partition
#: tables are left out: they refer to nothing, and a kernel has the mark of a boot sector too.
_RECOGNISED: Final = ("qcow2", "qed", "vhd", "vhdx", "vmdk", "vdi", "iso")
#: Declared formats that bytes can contradict; the others say nothing of the bytes.
_CONTRADICTED: Final = frozenset({"raw", "qcow2", "vhd", "vhdx", "vmdk", "vdi", "iso"})

#: A VMDK descriptor by itself, as QEMU's probe sees it: comments and blank lines, then the version.
_DESCRIPTOR: Final = re.compile(rb"(?:(?:#[^\n]*| *\r?)\n)*version=[123]\r?\n")
_ESX_SPARSE: Final = b"COWD"
_EXTENT: Final = re.compile(r"^\s*(?:rw|rdonly|noaccess)\s+\S+\s+(\S+)", re.MULTILINE)
_PARENT_LOCATOR: Final = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le

_VHD_COOKIE: Final = b"conectix"
_VHD_DIFFERENCING: Final = 4
_VDI_STANDALONE: Final = (1, 2)

#: What a failed check of the parsers means.
_CAUSES: Final[Mapping[str, str]] = {
    "backing_file": "it has a backing file",
    "data_file": "it has an external data file",
    "unknown_features": "it needs features that are not known",
    "banned": "this format is not taken",
    "descriptor": "its descriptor is not that of a single self-contained file",
    "footer": "its footer and its header contradict each other",
}


def open_inspector(declared: str | None, warn: Callable[[str], None] | None = None) -> FormatInspector:
    """An inspector for one image of this declared `format` (None where it is unset).

    Args:
        declared: The record's `format`.
        warn: Called once, in place of a refusal, with what was found; perhaps in another thread.
    """
    return FormatInspector(declared) if warn is None else _LenientInspector(declared, warn)


class FormatInspector:
    """The examination of one image. Give it every block in order, then call `finish`.

    Holds a piece of the image and what the parsers keep: at most about a MiB, of a VMDK's descriptor.

    Attributes:
        decided: Nothing that comes can change the judgement; `feed` returns at once.
    """

    def __init__(self, declared: str | None) -> None:
        self.decided = not available
        self._declared = declared if declared in _CONTRADICTED else None
        self._piece = bytearray()
        self._tail = b""
        self._begun = False
        self._found: str | None = None
        self._parser: Any = None
        self._footer_wanted = False

    def feed(self, block: Block) -> None:
        """Take the next bytes.

        Raises:
            UnsafeImage: The image must not be kept.
        """
        if self.decided:
            return
        view = memoryview(block).cast("B")
        while view.nbytes and not self.decided:
            room = PIECE_SIZE - len(self._piece)
            taken, view = view[:room], view[room:]
            self._piece += taken
            self._tail = (self._tail + bytes(taken[-_TAIL_SIZE:]))[-_TAIL_SIZE:]
            if len(self._piece) == PIECE_SIZE:
                self._examine()

    def finish(self) -> None:
        """Take the end of the image. Nothing may be fed after it.

        Raises:
            UnsafeImage: The image must not be kept.
        """
        if self.decided:
            return
        if not self._begun:
            # A reader of disks sees whole sectors, so a header may end early and count all the same.
            self._piece = self._piece.ljust(_SECTOR, b"\0")
        self._examine()
        if self._found is not None and self._parser is not None:
            if _waits_for_end(self._parser):
                _eat(self._found, self._parser, self._tail)
            self._parser.finish()
            _require_safe(self._found, self._parser)
        if self._footer_wanted:
            self._judge_footer()
        self.decided = True

    def _examine(self) -> None:
        piece, self._piece = bytes(self._piece), bytearray()
        if not self._begun:
            self._begun = True
            self._found, self._parser = _recognise(piece)
            self._compare(self._found)
        elif self._found is not None and self._parser is not None and not _waits_for_end(self._parser):
            _eat(self._found, self._parser, piece)
        if self._found is not None and self._parser is not None and self._parser.complete:
            _require_safe(self._found, self._parser)
            self._parser = None
        self.decided = self._parser is None and not self._footer_wanted

    def _compare(self, found: str | None) -> None:
        """Hold what the bytes are against what they were declared to be. An ISO is a raw disk too."""
        if self._declared is None or found == self._declared:
            return
        plain = found in {None, "iso"}
        if self._declared == "vhd" and plain:
            self._footer_wanted = True
        elif not (self._declared == "raw" and plain):
            raise self._contradiction(found)

    def _judge_footer(self) -> None:
        """A VHD of fixed size is a plain disk with a footer of 512 bytes, 511 in old ones."""
        for size in (512, 511):
            if self._tail[-size:].startswith(_VHD_COOKIE):
                _refuse("vhd", _vhd_parent(self._tail[-size:]))
                return
        raise self._contradiction(None)

    def _contradiction(self, found: str | None) -> UnsafeImage:
        what = f"in the format {found}" if found else "not in that format"
        return UnsafeImage(f"The image is declared as {self._declared}, and its bytes are {what}")


class _LenientInspector(FormatInspector):
    """Refuses nothing."""

    def __init__(self, declared: str | None, warn: Callable[[str], None]) -> None:
        super().__init__(declared)
        self._warn = warn

    def feed(self, block: Block) -> None:
        try:
            super().feed(block)
        except UnsafeImage as error:
            self._let_pass(error)

    def finish(self) -> None:
        try:
            super().finish()
        except UnsafeImage as error:
            self._let_pass(error)

    def _let_pass(self, error: UnsafeImage) -> None:
        self.decided = True
        self._warn(error.message.replace("is refused", "would be refused", 1))


def _recognise(head: bytes) -> tuple[str, Any] | tuple[None, None]:
    """What the image is, and the parser for it. Raises `UnsafeImage` where no parser could vouch for it."""
    if _DESCRIPTOR.match(head[:_SECTOR]):
        raise UnsafeImage("The image is refused: it is a VMDK descriptor, which names its data in other files")
    if head.startswith(_ESX_SPARSE):
        raise UnsafeImage("The image is refused: it is a VMDK of a kind that is not taken")
    parsers = {name: kind() for name in _RECOGNISED if (kind := _oslo.get_inspector(name)) is not None}
    found = {name: parser for name, parser in parsers.items() if _eat(name, parser, head)}
    if len(found) > 1:
        # Every other format is recognised at byte 0, where readers look first.
        found.pop("iso", None)
    if len(found) > 1:
        raise UnsafeImage(f"The image is refused: its bytes are of several formats at once: {', '.join(found)}")
    return next(iter(found.items()), (None, None))


def _eat(name: str, parser: Any, piece: bytes) -> bool:
    """Give a parser a piece. Returns whether the image is in its format."""
    try:
        parser.eat_chunk(piece)
    except Exception as exc:
        if _matches(parser):
            raise UnsafeImage(f"The image is refused: its bytes begin like {name} and can't be read as such") from exc
        return False
    return _matches(parser)


def _matches(parser: Any) -> bool:
    try:
        return bool(parser.format_match)
    except Exception:
        # A parser that met nothing of its own may not have set what it compares.
        return False


def _waits_for_end(parser: Any) -> bool:
    """Whether only a footer is missing, so that the bytes between need not pass through the parser."""
    return bool(
        parser.has_region("footer")
        and all(parser.region(name).complete for name in ("header", "descriptor") if parser.has_region(name))
    )


def _require_safe(name: str, parser: Any) -> None:
    try:
        parser.safety_check()
    except _oslo.SafetyCheckFailed as exc:
        causes = [_CAUSES.get(check, str(failure)) for check, failure in exc.failures.items()]
        raise UnsafeImage(f"The image is refused as {name}: {'; '.join(causes)}") from exc
    except _oslo.ImageFormatError as exc:
        raise UnsafeImage(f"The image is refused: its bytes begin like {name} and end too early") from exc
    if (look := _REFERENCES.get(name)) is not None:
        _refuse(name, look(parser))


def _refuse(name: str, cause: str | None) -> None:
    if cause is not None:
        raise UnsafeImage(f"The image is refused as {name}: {cause}")


# --- references that the parsers do not look for: each tells what is wrong, or None ----------------


def _vmdk_references(parser: Any) -> str | None:
    text: str = parser.desc_text or ""
    if not parser.has_region("header"):
        return "it is a descriptor, which names its data in other files"
    if "parentfilenamehint" in text:
        return "it has a parent"
    if any(kind != "sparse" for kind in _EXTENT.findall(text)):
        return "it has an extent outside itself"
    return None


def _vhd_parent(footer: bytes) -> str | None:
    (kind,) = struct.unpack_from(">I", footer, 60)
    return "it has a parent" if kind == _VHD_DIFFERENCING else None


def _vhdx_parent(parser: Any) -> str | None:
    if not parser.has_region("metadata"):
        return "it has no metadata"
    return "it has a parent" if _PARENT_LOCATOR in bytes(parser.region("metadata").data) else None


def _vdi_parent(parser: Any) -> str | None:
    (kind,) = struct.unpack_from("<I", parser.region("header").data, 76)
    return None if kind in _VDI_STANDALONE else "it depends on another image"


_REFERENCES: Final[Mapping[str, Callable[[Any], str | None]]] = {
    "vmdk": _vmdk_references,
    "vhd": lambda parser: _vhd_parent(bytes(parser.region("header").data)),
    "vhdx": _vhdx_parent,
    "vdi": _vdi_parent,
}
