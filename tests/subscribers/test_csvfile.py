"""Files as people have them: every encoding, delimiter and damage, and a bad row costs itself only."""

import csv
import io
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subscribers.csvfile import BadFile, CsvFile


def read(data: bytes) -> tuple[list[str], list[tuple[int, list[str], bool]]]:
    """Columns, and (line, cells, is refused) of each row."""
    file = CsvFile(io.BytesIO(data))
    return file.columns, [(row.line, row.cells, bool(row.problem)) for row in file]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_encodings_line_ends_and_delimiters_are_found_out(encoding: str, end: str, delimiter: str) -> None:
    text = end.join(["E-Mail,Name,Città", "ann@mail.example,Ann,Forlì", "用户@例え.jp,花,東京"]) + end
    columns, rows = read(text.replace(",", delimiter).encode(encoding))
    assert columns == ["email", "name", "Città"]
    assert rows == [
        (2, ["ann@mail.example", "Ann", "Forlì"], False),
        (3, ["用户@例え.jp", "花", "東京"], False),
    ]


def test_latin_1_bytes_are_read_row_by_row_and_said() -> None:
    file = CsvFile(io.BytesIO(b"email,name\na@b.org,J\xf6rg\nc@d.org,J\xc3\xb6rg\ne@f.org,\x81\n"))
    assert [row.cells[1] for row in file] == ["Jörg", "Jörg", "\x81"]
    assert file.note.startswith("2 rows were not UTF-8")


def test_quotes_commas_and_line_ends_inside_fields() -> None:
    data = b'email,name\n"a@b.org","Smith, ""Ann""\nthe second"\nc@d.org,5" pipe\n'
    assert read(data)[1] == [
        (2, ["a@b.org", 'Smith, "Ann"\nthe second'], False),
        (4, ["c@d.org", '5" pipe'], False),
    ]


def test_a_quote_that_never_closes_swallows_no_other_row() -> None:
    rows = b"".join(b"a%d@b.org,x\n" % number for number in range(300))
    found = read(b'email,name\n"broken@b.org,x\n' + rows + b'y@b.org,"z\n' + rows)[1]
    assert [cells for _line, cells, refused in found if refused] == [['"broken@b.org,x'], ['y@b.org,"z']]
    assert len(found) == 602
    assert found[1] == (3, ["a0@b.org", "x"], False)


def test_rows_of_another_width_are_refused_and_empty_ones_skipped() -> None:
    found = read(b"email,name\na@b.org\n\n,\nc@d.org,C,more\ne@f.org,E")[1]
    assert found == [
        (2, ["a@b.org"], True),
        (5, ["c@d.org", "C", "more"], True),
        (6, ["e@f.org", "E"], False),
    ]


class Huge(io.RawIOBase):
    """A file with a line of 10 MB in its middle, which is never held as a whole here either."""

    def __init__(self, quoted: bool) -> None:
        self._pieces = self._generate(b'"' if quoted else b"")
        self._rest = b""

    def _generate(self, quote: bytes) -> Iterator[bytes]:
        yield b"email,name\na@b.org,A\n" + quote
        for _piece in range(160):
            yield b"x" * 65_536
        yield b"\nc@d.org,C\n"

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


@pytest.mark.parametrize("quoted", [False, True])
def test_a_line_of_ten_megabytes_is_one_refused_row_and_no_memory(quoted: bool) -> None:
    tracemalloc.start()
    rows = list(CsvFile(Huge(quoted)))  # type: ignore[arg-type]
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(row.line, bool(row.problem)) for row in rows] == [(2, False), (3, True), (4, False)]
    assert "longer than 64 kB" in rows[1].problem
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"name,city\nAnn,Bath\n", "email"),
        (b"ann@mail.example,Ann\n", "email"),
        (b"email,Email\na@b.org,c@d.org\n", "twice"),
        (b"PK\x03\x04\x14\x00\x08\x00\n", "not a text file"),
        (b"email,name\ra@b.org,Ann\r", "line ends"),
        (b'"email,name\n', "email"),
        (b"x" * 200_000, "too long"),
        (b"email," + b",".join(b"c%d" % i for i in range(80)) + b"\n", "more than 60"),
    ],
)
def test_a_file_without_a_usable_header_is_refused_in_a_sentence(data: bytes, why: str) -> None:
    with pytest.raises(BadFile, match=why):
        CsvFile(io.BytesIO(data))


_cells = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=12)


@given(st.lists(st.tuples(_cells, _cells), max_size=20))
def test_what_a_csv_writer_wrote_is_read_back(rows: list[tuple[str, str]]) -> None:
    out = io.StringIO()
    csv.writer(out).writerows([("email", "name"), *rows])
    wanted = [list(row) for row in rows if any(cell.strip() for cell in row)]
    assert [cells for _line, cells, _refused in read(out.getvalue().encode())[1]] == wanted


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader_or_lose_a_good_row(rubbish: bytes) -> None:
    found = read(b"email,name\nfirst@b.org,1\n" + rubbish + b"\nlast@b.org,2\n")[1]
    assert found[0] == (2, ["first@b.org", "1"], False)
    assert found[-1][1][:1] == ["last@b.org"] or b'"' in rubbish
