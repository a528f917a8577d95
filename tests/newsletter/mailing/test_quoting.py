"""Quoted-printable without a line that begins with a dot: what is decoded is what was written."""

import quopri

from hypothesis import example, given
from hypothesis import strategies as st

from newsletter.mailing.quoting import quoted_printable

LINES = st.lists(st.text(alphabet=". =a\téࠀ𐀀", max_size=60).map(lambda line: f".{line}"), min_size=1, max_size=3)


@example(lines=[".." + "0000" + "\x80\x80\x80𐀀" + "0000" + "\x80\x80ࠀ𐀀"])
@example(lines=["." * 200])
@given(LINES)
def test_a_line_that_begins_with_a_dot_is_cut_between_characters_only(lines: list[str]) -> None:
    text = "\n".join(lines)
    encoded = quoted_printable(text)
    assert quopri.decodestring(encoded.replace(b"\r\n", b"\n")).decode("utf-8") == text
    for line in encoded.split(b"\r\n"):
        assert len(line) <= 76
        assert not line.startswith(b".")
