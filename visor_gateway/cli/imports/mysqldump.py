"""Rows of one table, out of what mysqldump and mariadb-dump write. Sans-IO.

A dump is SQL, of which this reads the two statements that hold rows: CREATE TABLE for the names of columns, INSERT (or
REPLACE) for values. All others are passed over token by token, so that nothing within a text or a comment is taken
for a statement. Values are NULL, numbers and texts with MySQL's escapes; anything else is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from .item import Unfit, quoted

_TOKEN: Final = re.compile(
    r"""
    (?P<space> \s++ | --(?=\s)[^\n]*+ | \#[^\n]*+ | /\*.*?\*/ )
  | '(?P<text> (?: [^'\\]++ | \\. | '' )*+ )'
  | `(?P<name> (?: [^`]++ | `` )*+ )`
  | (?P<number> -?\d++(?:\.\d++)?(?:[eE][+-]?\d++)?(?![\w.]) )
  | (?P<word> [A-Za-z_@][\w@$]*+ )
  | (?P<mark> [(),;] )
  | (?P<other> "(?: [^"\\]++ | \\. | "" )*+" | [^'"`] )
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPED: Final = re.compile(r"\\(.)|''", re.DOTALL)
_ESCAPES: Final = {"0": "\0", "b": "\b", "n": "\n", "r": "\r", "t": "\t", "Z": "\x1a"}


class _Token(NamedTuple):
    kind: str
    value: str
    place: int


def read_rows(dump: bytes, table: str) -> list[dict[str, Any]]:
    """The rows of a table by column: None, int, float or str.

    Raises:
        Unfit: The dump has no such table, has it twice, or is not what mysqldump writes; the message says where.
    """
    try:
        text = dump.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise Unfit(f"byte {exc.start} is not UTF-8: dump with --default-character-set=utf8mb4") from exc
    return _Dump(text, table).read()


class _Dump:
    def __init__(self, text: str, table: str) -> None:
        self._text = text
        self._table = table
        self._tokens = self._all()
        self._columns: list[str] | None = None
        self._rows: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        for token in self._tokens:
            if token.value == ";" and token.kind == "mark":
                continue
            if self._begins(token):
                continue
            for passed in self._tokens:
                if passed.kind == "mark" and passed.value == ";":
                    break
        if self._columns is None and not self._rows:
            raise Unfit(f"it has no table `{self._table}`")
        return self._rows

    def _begins(self, token: _Token) -> bool:
        """Read a statement of the table's that begins with `token`; False for any other, which is to be passed over."""
        verb = token.value.upper() if token.kind == "word" else ""
        if verb not in {"CREATE", "INSERT", "REPLACE"}:
            return False
        word = self._next()
        while word.kind == "word" and word.value.upper() in {"TABLE", "IF", "NOT", "EXISTS", "IGNORE", "INTO"}:
            word = self._next()
        if word.kind == "mark" and word.value == ";":
            return True
        if word != ("name", self._table, word.place):
            return False
        if verb == "CREATE":
            self._create()
        else:
            self._insert()
        return True

    def _create(self) -> None:
        if self._columns is not None:
            raise Unfit(f"it has the table `{self._table}` twice: dump one database alone")
        self._expect("(")
        self._columns = []
        depth, first = 1, True
        while depth:
            token = self._next()
            if first and token.kind == "name":
                self._columns.append(token.value)
            first = token.kind == "mark" and token.value == "," and depth == 1
            depth += {"(": 1, ")": -1}.get(token.value, 0) if token.kind == "mark" else 0
        while (token := self._next()).value != ";" or token.kind != "mark":
            pass

    def _insert(self) -> None:
        columns, token = self._columns, self._next()
        if token.kind == "mark" and token.value == "(":
            columns = self._names()
            token = self._next()
        if token.kind != "word" or token.value.upper() not in {"VALUES", "VALUE"}:
            raise self._unexpected(token)
        if columns is None:
            raise Unfit(f"it does not say the columns of `{self._table}`: dump with CREATE TABLE or --complete-insert")
        while True:
            place = self._expect("(").place
            values = self._values()
            if len(values) != len(columns):
                raise Unfit(f"a row has {len(values)} values for {len(columns)} columns, at line {self._line(place)}")
            self._rows.append(dict(zip(columns, values, strict=True)))
            token = self._next()
            if token.kind == "mark" and token.value == ";":
                return
            if token.kind != "mark" or token.value != ",":
                raise self._unexpected(token)

    def _names(self) -> list[str]:
        names = []
        for token in self._listed():
            if token.kind != "name":
                raise self._unexpected(token)
            names.append(token.value)
        return names

    def _values(self) -> list[Any]:
        return [self._value(token) for token in self._listed()]

    def _listed(self) -> Iterator[_Token]:
        """Tokens between commas, up to the closing parenthesis."""
        while True:
            yield self._next()
            token = self._next()
            if token.kind == "mark" and token.value == ")":
                return
            if token.kind != "mark" or token.value != ",":
                raise self._unexpected(token)

    def _value(self, token: _Token) -> Any:
        if token.kind == "text":
            return _ESCAPED.sub(lambda found: _unescaped(found.group(1)), token.value)
        if token.kind == "number":
            return int(token.value) if token.value.lstrip("-").isdigit() else float(token.value)
        if token.kind == "word" and token.value.upper() == "NULL":
            return None
        raise self._unexpected(token)

    def _expect(self, mark: str) -> _Token:
        token = self._next()
        if token.kind != "mark" or token.value != mark:
            raise self._unexpected(token)
        return token

    def _next(self) -> _Token:
        for token in self._tokens:
            return token
        raise Unfit("it ends in the middle of a statement: it was cut")

    def _all(self) -> Iterator[_Token]:
        place = 0
        while place < len(self._text):
            found = _TOKEN.match(self._text, place)
            if found is None:
                raise Unfit(f"a text or a name does not end, from line {self._line(place)} on: the dump was cut")
            kind = str(found.lastgroup)
            if kind != "space":
                yield _Token(kind, found.group(kind), place)
            place = found.end()

    def _unexpected(self, token: _Token) -> Unfit:
        return Unfit(f"{quoted(token.value)} was not expected in line {self._line(token.place)}")

    def _line(self, place: int) -> int:
        return self._text.count("\n", 0, place) + 1


def _unescaped(character: str | None) -> str:
    return "'" if character is None else _ESCAPES.get(character, character)
