"""The commented configuration that `visor-gateway init` writes, rendered from the declarations in `settings`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from .loading import located
from .settings import SECTIONS, STORE_TYPES, Declared, FileStore, HttpStore, Section, Stores, shown

_HEAD: Final = """\
Configuration of visor-gateway. Every setting stands here with its default, switched off: remove the # to set it.
Each can also be given as an environment variable, VISOR_GATEWAY__SECTION__KEY. A secret can be kept out of this file:
name a file in KEY_file, or pass it as the systemd credential SECTION.KEY (stores.NAME.KEY)."""


def sample(data_dir: Path, environ: Mapping[str, str] | None = None) -> str:
    """The configuration file with every setting, its meaning and its default; all of it comments but the tables.

    Args:
        data_dir: The data directory that default places are shown under.
        environ: The environment, for the directories that systemd makes.
    """
    places = {key: given.value for key, given in located(data_dir, environ or {}).items()}
    lines = [*_comment(_HEAD)]
    for name, cls in SECTIONS.items():
        lines += ["", *_comment(cls.__doc__ or ""), f"[{name}]", *_settings(cls, name, places)]
        if cls is Stores:
            for type_name, store in STORE_TYPES.items():
                lines += ["", *_comment(store.__doc__ or ""), *_store(type_name, store, places)]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    paragraph = text.partition("\n\n")[0]
    return [f"# {line}" for line in textwrap.wrap(" ".join(paragraph.split()), 116)]


def _store(name: str, cls: type[Section], places: dict[str, object]) -> Iterator[str]:
    # Only the stores that are there anyway stand as tables: the others would be incomplete.
    there = cls in (FileStore, HttpStore)
    yield f"{'' if there else '# '}[stores.{name}]"
    yield f"{'' if there else '# '}type = {json.dumps(name)}"
    yield from _settings(cls, f"stores.{name}", places)


def _settings(cls: type[Section], prefix: str, places: dict[str, object]) -> Iterator[str]:
    for declared in cls.declared():
        yield from _comment(f"{declared.meaning} ({declared.kind.expected})")
        yield f"# {declared.key} = {_default(declared, places.get(f'{prefix}.{declared.key}'))}"


def _default(declared: Declared, place: object) -> str:
    if place is not None:
        return json.dumps(place)
    if declared.default is msgspec.NODEFAULT or declared.default is None:
        return '""'
    # JSON's text, number, boolean and array are TOML's too.
    return json.dumps(shown(declared.default))
