"""A CSV file as rows, whatever its encoding, delimiter and damage: constant memory, and a bad row costs itself only."""

import codecs
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from django.utils.translation import gettext as _

CHUNK = 1 << 16
MAX_LINE = 1 << 16  # bytes; a longer line is refused and skipped without being kept
MAX_LINES_IN_ROW = 100  # of one quoted field; a quote that stays open longer is damage
MAX_COLUMNS = 60
_EMAIL_NAMES = {"email", "e-mail", "email address", "e-mail address", "email_address"}


def harmless(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


class BadFile(ValueError):
    """The file as a whole cannot be read; one sentence for a person."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record; `problem` says in a sentence why it cannot be used, and then `cells` hold what was there."""

    line: int
    cells: list[str]
    problem: str = ""


class CsvFile:
    """A file being read. `columns` are the header's names, with the address's column always called "email"."""

    def __init__(self, stream: BinaryIO) -> None:
        self._decoded_otherwise = 0
        self._lines = _Lines(_as_utf8(stream))
        self.delimiter = ","
        self.columns: list[str] = []
        self.columns = self._header()

    @property
    def note(self) -> str:
        """What a person should know about how the file was read; often nothing."""
        if not self._decoded_otherwise:
            return ""
        return _("%(count)d rows were not UTF-8 and were read as Western European (Windows-1252).") % {
            "count": self._decoded_otherwise
        }

    def __iter__(self) -> Iterator[Row]:
        """Every row after the header but the empty ones. A problem never ends the iteration."""
        width = len(self.columns)
        while (line := self._lines.next()) is not None:
            row = self._row(line)
            if not row.problem and not any(cell.strip() for cell in row.cells):
                continue
            if not row.problem and len(row.cells) != width:
                text = _("The row has %(found)d fields, the header has %(wanted)d.")
                row = Row(row.line, row.cells, text % {"found": len(row.cells), "wanted": width})
            yield row

    def _header(self) -> list[str]:
        line = self._lines.next()
        if line is None:
            raise BadFile(_("The file is empty."))
        if line.data is None:
            raise BadFile(_("The first line is too long to be a header; is this a CSV file?"))
        if b"\0" in line.data:
            raise BadFile(_("This is not a text file; please export the table as CSV."))
        if b"\r" in line.data.rstrip(b"\r\n"):
            raise BadFile(_("The line ends are of a kind (CR) that old programs write; please save the file again."))
        text = line.data.decode("utf-8", "replace")
        # Spreadsheets write what their country uses.
        self.delimiter = max(",;\t", key=text.count)
        row = self._row(line)
        names = [cell.strip() for cell in row.cells]
        lowered = ["email" if name.lower() in _EMAIL_NAMES else name.lower() for name in names]
        if row.problem or "email" not in lowered:
            shown = ", ".join(names)[:120]
            raise BadFile(
                _("The first line must name the columns, one of them “email”; it is: %(line)s") % {"line": shown}
            )
        if len(names) > MAX_COLUMNS:
            raise BadFile(_("The file has more than %(limit)d columns.") % {"limit": MAX_COLUMNS})
        twice = sorted({name for name in lowered if name and lowered.count(name) > 1})
        if twice:
            raise BadFile(_("The column “%(name)s” is there twice.") % {"name": twice[0]})
        known = {"email", "name", "language", "tags"}
        return [low if low in known else name for name, low in zip(names, lowered, strict=True)]

    def _row(self, line: "_Line") -> Row:
        """The record that begins with this line, which may go on over further ones inside quotes."""
        if line.data is None:
            return Row(
                line.number, [line.start], _("The line is longer than %(limit)d kB.") % {"limit": MAX_LINE >> 10}
            )
        data, following = line.data, list[_Line]()
        cells = self._cells(data)
        while cells is None and b'"' in data and len(following) < MAX_LINES_IN_ROW and len(data) < MAX_LINE:
            more = self._lines.next()
            if more is None:
                break
            following.append(more)
            if more.data is None:
                break
            data += more.data
            if b'"' in more.data:
                cells = self._cells(data)
        if cells is None or (following and self.columns and len(cells) != len(self.columns)):
            # What a stray quote swallowed is not lost: those lines are read again as rows of their own.
            self._lines.give_back(following)
            return Row(line.number, [_text(line.data)[0].strip()], _("The quotation marks of this row do not fit."))
        return Row(line.number, cells)

    def _cells(self, data: bytes) -> list[str] | None:
        """The fields of a whole record; None if it is none, or ends inside quotes."""
        text, is_utf8 = _text(data)
        try:
            cells = next(csv.reader((text,), delimiter=self.delimiter, strict=True), [])
        except csv.Error:
            return None
        self._decoded_otherwise += not is_utf8
        return cells


def _text(data: bytes) -> tuple[str, bool]:
    """A line's text, and whether it was UTF-8 as it should be. Line by line, so that one bad byte spoils one row."""
    try:
        return data.decode(), True
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("cp1252"), False
    except UnicodeDecodeError:
        return data.decode("latin-1"), False


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    data: bytes | None  # with its line end; None: too long
    start: str = ""  # of a line that is too long


class _Lines:
    """Physical lines of a stream of bytes. A line past MAX_LINE is counted and skipped, never held."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._ready: Iterator[bytes] = iter(())
        self._rest = b""
        self._number = 0
        self._given_back: list[_Line] = []

    def next(self) -> _Line | None:
        """The next line, or None at the end."""
        if self._given_back:
            return self._given_back.pop()
        data = next(self._ready, None)
        while data is None:
            chunk = next(self._chunks, None)
            if chunk is None:
                data, self._rest = self._rest, b""
                if not data:
                    return None
                break
            buffer = self._rest + chunk
            if b"\n" not in chunk and len(buffer) > MAX_LINE:
                return self._skip(buffer[:80])
            complete, separator, self._rest = buffer.rpartition(b"\n")
            if separator:
                self._ready = _split(complete)
                data = next(self._ready, None)
        self._number += 1
        if len(data) > MAX_LINE:
            return _Line(self._number, None, data[:80].decode("utf-8", "replace"))
        return _Line(self._number, data)

    def give_back(self, lines: list[_Line]) -> None:
        """Lines to be read again, in this order."""
        self._given_back.extend(reversed(lines))

    def _skip(self, start: bytes) -> _Line:
        self._number += 1
        self._rest = b""
        for chunk in self._chunks:
            _tail, separator, after = chunk.partition(b"\n")
            if separator:
                complete, separator, self._rest = after.rpartition(b"\n")
                if separator:
                    self._ready = _split(complete)
                break
        return _Line(self._number, None, start.decode("utf-8", "replace"))


def _split(complete: bytes) -> Iterator[bytes]:
    """Lines with their ends, of text that ended with one. Only LF ends a line: CR may stand inside a field."""
    return (line + b"\n" for line in complete.split(b"\n"))


def _as_utf8(stream: BinaryIO) -> Iterator[bytes]:
    """The file in pieces, UTF-16 turned into UTF-8, a byte order mark left out."""
    first = stream.read(CHUNK)
    encoding = _wide_encoding(first)
    if encoding is None:
        yield first.removeprefix(codecs.BOM_UTF8)
        while chunk := stream.read(CHUNK):
            yield chunk
        return
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    yield decoder.decode(first).removeprefix("\ufeff").encode("utf-8", "replace")
    while chunk := stream.read(CHUNK):
        yield decoder.decode(chunk).encode("utf-8", "replace")
    yield decoder.decode(b"", final=True).encode("utf-8", "replace")


def _wide_encoding(first: bytes) -> str | None:
    """UTF-16's name, by its mark, or by the zero bytes that every second place of a Western header holds."""
    if first.startswith(codecs.BOM_UTF16_LE):
        return "utf-16-le"
    if first.startswith(codecs.BOM_UTF16_BE):
        return "utf-16-be"
    header = first[:64]
    if len(header) >= 8 and header[1::2].count(0) > len(header) // 3 and not header[0::2].count(0):
        return "utf-16-le"
    if len(header) >= 8 and header[0::2].count(0) > len(header) // 3 and not header[1::2].count(0):
        return "utf-16-be"
    return None
