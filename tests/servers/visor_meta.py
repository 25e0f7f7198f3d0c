"""A Meta server that behaves as VISOR's of 2012 does on MySQL, as far as it was recorded, and as its statements allow.

It is stricter where that one would break: whatever could end a text in its SQL, does not fit a column, or is null, is a
failure that a test can look for.
"""

from __future__ import annotations

import json
import re
import uuid
from typing import Any, Final

from servers.visor_http import Refused, Row, VisorHttp, now

MANDATORY: Final = ("name", "architecture")
READ_ONLY: Final = ("_id", "uri", "created_at", "updated_at", "accessed_at", "access_count")
COLUMNS: Final = {
    "_id": 45, "uri": 255, "name": 45, "architecture": 45, "access": 45, "type": 45, "format": 45, "store": 45,
    "location": 255, "kernel": 45, "ramdisk": 45, "owner": 45, "status": 45, "size": 0, "created_at": 0,
    "uploaded_at": 0, "updated_at": 0, "accessed_at": 0, "access_count": 0, "checksum": 255, "others": 255,
}  # fmt: skip
CHOICES: Final = {
    "architecture": ("i386", "x86_64"),
    "access": ("public", "private"),
    "format": ("iso", "vhd", "vdi", "vmdk", "ami", "aki", "ari"),
    "type": ("kernel", "ramdisk", "machine"),
    "store": ("s3", "cumulus", "walrus", "hdfs", "lcs", "http", "file"),
}
BRIEF: Final = ("_id", "name", "architecture", "type", "format", "store", "size")
EXCLUDED: Final = ("accessed_at", "access_count")


class MetaServer(VisorHttp):
    """A Meta server. Its `rows` are by `_id`."""

    def images(self) -> dict[str, Row]:
        """Records by name, but for markers; custom attributes among the fields."""
        with self._lock:
            found = [_shown(row) for row in self.rows.values()]
        return {row["name"]: row for row in found if row["name"] != "visor-gateway"}

    def change(self, name: str, /, **values: Any) -> None:
        """Change a record as another client of the server would."""
        with self._lock:
            [row] = [row for row in self.rows.values() if row["name"] == name]
            row.update(values)

    def add(self, **values: Any) -> str:
        """Add a record as another client of the server would, in any state. Returns its id."""
        row = self._register({"architecture": "x86_64", "name": "x"})
        row.update(values)
        return str(row["_id"])

    # --- a request -----------------------------------------------------------------------------

    def _routed(self, method: str, path: str, query: dict[str, str], body: bytes) -> Any:
        if path in {"/images", "/images/detail"} and method == "GET":
            return {"images": self._list(query, brief=path == "/images")}
        if path == "/images" and method == "POST":
            return {"image": _shown(self._register(json.loads(body)["image"]))}
        found = re.fullmatch(r"/images/([^/]+)", path)
        if found is None:
            raise Refused(404, "Invalid operation or path.")
        image_id = found.group(1)
        self._in_sql("_id", image_id)
        if image_id not in self.rows:
            raise Refused(404, f"No image found with id '{image_id}'.")
        row = self.rows[image_id]
        if method == "GET":
            shown = _shown(row)
            row.update(accessed_at=now(), access_count=row["access_count"] + 1)
            return {"image": shown}
        if method == "DELETE":
            del self.rows[image_id]
            return {"image": row}
        if method == "PUT":
            values = self._checked(json.loads(body)["image"])
            row.update(values, updated_at=now())
            return {"image": _shown(row)}
        raise Refused(404, "Invalid operation or path.")

    def _list(self, query: dict[str, str], *, brief: bool) -> list[Row]:
        sort, direction = query.pop("sort", "_id"), query.pop("dir", "asc")
        for name, value in query.items():
            if name not in COLUMNS or name == "others":
                raise Refused(500, f"Unknown key: {name}")
            self._in_sql(name, value)
        filters = query if "owner" in query else {**query, "access": "public"}
        found = [
            row
            for row in self.rows.values()
            if all(str(row[name]).lower() == value.lower() for name, value in filters.items())
        ]
        if not found:
            raise Refused(404, "No public images found with given parameters.")
        found.sort(key=lambda row: str(row[sort] or ""), reverse=direction == "desc")
        return [{name: row[name] for name in BRIEF} if brief else _shown(row) for row in found]

    def _register(self, fields: Row) -> Row:
        missing = [name for name in MANDATORY if name not in fields]
        values = self._checked(fields, missing)
        image_id = str(uuid.uuid4())
        row = {
            **dict.fromkeys(COLUMNS), "access": "public", "access_count": 0, **values, "_id": image_id,
            "uri": f"http://10.0.0.1:4568/images/{image_id}", "created_at": now(), "status": "locked",
        }  # fmt: skip
        self.rows[image_id] = row
        return row

    def _checked(self, fields: Row, missing: list[str] | None = None) -> Row:
        if refused := [name for name in fields if name in READ_ONLY]:
            raise Refused(400, f"These fields are read-only: {', '.join(refused)}")
        if missing:
            raise Refused(400, f"These fields are required: {', '.join(missing)}")
        for name, choices in CHOICES.items():
            if fields.get(name) is not None and fields[name] not in choices:
                raise Refused(400, f"Invalid {name} '{fields[name]}', available options: {', '.join(choices)}")
        for name in ("kernel", "ramdisk"):
            if name in fields:
                if fields[name] not in self.rows:
                    raise Refused(404, f"No image found with id '{fields[name]}'.")
                wanted = "aki" if name == "kernel" else "ari"
                if self.rows[fields[name]]["type"] != name and fields.get("format") != wanted:
                    raise Refused(400, f"The image with id {fields[name]} is not a {name} image.")
        values = {name: value for name, value in fields.items() if name in COLUMNS}
        if others := {name: value for name, value in fields.items() if name not in COLUMNS}:
            values["others"] = json.dumps(others, separators=(",", ":"), ensure_ascii=False)
        for name, value in values.items():
            self._in_sql(name, value)
        return values

    def _in_sql(self, name: str, value: Any) -> None:
        """What the statement would make of a value."""
        wrong = None
        if value is None:
            wrong = f"{name}= is no SQL"
        elif isinstance(value, str):
            if re.search(r"['\\]|[^\x20-\uffff]", value):
                wrong = f"{name}='{value}' is more than a value"
            elif COLUMNS[name] and len(value) > COLUMNS[name]:
                wrong = f"{name}: too long"
        elif not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
            wrong = f"{name}: out of range"
        if wrong:
            self.failures.append(wrong)
            raise Refused(500, wrong)


def _shown(row: Row) -> Row:
    shown = {name: value for name, value in row.items() if name not in EXCLUDED}
    if shown["others"]:
        shown |= json.loads(shown.pop("others"))
    return shown
