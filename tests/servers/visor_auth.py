"""An Auth server that behaves as VISOR's of 2012 does on MySQL, as far as it was recorded, and as its statements allow.

It is stricter where that one would break: whatever could end a text in its SQL is a failure that a test can look for.
"""

from __future__ import annotations

import json
import re
import secrets
import string
import uuid
from typing import Any, Final

from servers.visor_http import Refused, Row, VisorHttp, now

MANDATORY: Final = ("access_key", "email")
READ_ONLY: Final = ("_id", "secret_key", "created_at", "updated_at")
COLUMNS: Final = ("_id", "access_key", "secret_key", "email", "created_at", "updated_at")
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+\Z")


class AuthServer(VisorHttp):
    """An Auth server. Its `rows` are by access key."""

    def add(self, access_key: str, **values: Any) -> Row:
        """Add a user as another client of the server would, in any state."""
        row = self._register({"access_key": access_key, "email": f"{access_key}@example.org"})
        row.update(values)
        return row

    def _routed(self, method: str, path: str, query: dict[str, str], body: bytes) -> Any:
        if path == "/users" and method == "GET":
            return {"users": self._list(query)}
        if path == "/users" and method == "POST":
            return {"user": dict(self._register(json.loads(body)["user"]))}
        found = re.fullmatch(r"/users/([^/]+)", path)
        if found is None:
            raise Refused(404, "Invalid operation or path.")
        row = self._found(found.group(1))
        if row is None:
            raise Refused(404, f"No user found with access_key '{found.group(1)}'.")
        if method == "GET":
            return {"user": dict(row)}
        if method == "DELETE":
            return {"user": self.rows.pop(row["access_key"])}
        if method == "PUT":
            row.update(self._checked(json.loads(body)["user"]), updated_at=now())
            return {"user": dict(row)}
        raise Refused(404, "Invalid operation or path.")

    def _list(self, query: dict[str, str]) -> list[Row]:
        for name, value in query.items():
            if name not in COLUMNS:
                raise Refused(500, f"Unknown key: {name}")
            self._in_sql(name, value)
        found = [
            dict(row) for row in self.rows.values()
            if all(str(row[name]).lower() == value.lower() for name, value in query.items())
        ]  # fmt: skip
        if not found:
            raise Refused(404, "No users found with given parameters." if query else "No users found.")
        return found

    def _found(self, access_key: str) -> Row | None:
        """As MySQL compares: without regard to case."""
        self._in_sql("access_key", access_key)
        return next((row for key, row in self.rows.items() if key.lower() == access_key.lower()), None)

    def _register(self, fields: Row) -> Row:
        values = self._checked(fields, [name for name in MANDATORY if name not in fields])
        row = {
            "_id": str(uuid.uuid4()),
            "access_key": values["access_key"],
            "secret_key": "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(40)),
            "email": values["email"],
            "created_at": now(),
            "updated_at": None,
        }
        self.rows[row["access_key"]] = row
        return row

    def _checked(self, fields: Row, missing: list[str] | None = None) -> Row:
        if refused := [name for name in fields if name in READ_ONLY]:
            raise Refused(400, f"These fields are read-only: {', '.join(refused)}")
        if missing:
            raise Refused(400, f"These fields are required: {', '.join(missing)}")
        for name, value in fields.items():
            self._in_sql(name, value)
        if "access_key" in fields and self._found(fields["access_key"]) is not None:
            raise Refused(409, f"The access_key '{fields['access_key']}' was already taken.")
        if "email" in fields and not _EMAIL.match(fields["email"]):
            raise Refused(400, "The email address seems to be invalid.")
        return fields

    def _in_sql(self, name: str, value: Any) -> None:
        """What the statement would make of a value."""
        if name not in COLUMNS or not isinstance(value, str) or re.search(r"['\"\\`]|[^\x20-\x7e]", value):
            self.failures.append(f"{name} is more than a value")
            raise Refused(500, self.failures[-1])
