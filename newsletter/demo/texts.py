"""The letters of the demo: one for each week of the year, so that the history always fits the season."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "issues"
_HEAD = re.compile(r"^=== (\d+) \| (.+?) \| (.+)$", re.MULTILINE)

# Two gardens close every letter; a week's pair is these at its number.
GARDENS = (
    ("Great Dixter", "Great_Dixter"),
    ("Kenroku-en", "Kenroku-en"),
    ("Sissinghurst", "Sissinghurst_Castle_Garden"),
    ("Kirstenbosch", "Kirstenbosch_National_Botanical_Garden"),
    ("the Lost Gardens of Heligan", "Lost_Gardens_of_Heligan"),
    ("the Generalife", "Generalife"),
    ("Keukenhof", "Keukenhof"),
    ("Inhotim", "Inhotim"),
    ("the Huntington", "Huntington_Library"),
    ("the Majorelle garden", "Majorelle_Garden"),
    ("Kew", "Kew_Gardens"),
    ("Ryōan-ji", "Ryōan-ji"),
    ("the Hortus in Leiden", "Hortus_Botanicus_Leiden"),
    ("the Singapore Botanic Gardens", "Singapore_Botanic_Gardens"),
    ("Villa d’Este", "Villa_d'Este"),
    ("the Butchart Gardens", "Butchart_Gardens"),
    ("Levens Hall", "Levens_Hall"),
)
CLOSING = """
---
**Two gardens for the armchair:** [{0}](https://en.wikipedia.org/wiki/{1}) and [{2}](https://en.wikipedia.org/wiki/{3}).
"""


@dataclass(frozen=True)
class Letter:
    """One issue's text, in Markdown with merge tags."""

    number: int  # the week of the year, for the weekly letter
    subject: str
    preheader: str
    body: str


def letter_of_week(at: datetime) -> Letter:
    """The letter that fits the (ISO) week of a moment."""
    return _weekly()[at.isocalendar().week]


@cache
def japanese_letters() -> list[Letter]:
    """The issues of the small list in Japanese, oldest first."""
    return list(_read(FOLDER / "ja-engawa.md"))


@cache
def _weekly() -> dict[int, Letter]:
    letters = {letter.number: letter for path in sorted(FOLDER.glob("[0-9]-*.md")) for letter in _read(path)}
    if sorted(letters) != list(range(1, 54)):
        raise ValueError("the demo has not exactly one letter for each week of the year")
    return {week: _closed(letter) for week, letter in letters.items()}


def _closed(letter: Letter) -> Letter:
    near, far = (GARDENS[(2 * letter.number + place) % len(GARDENS)] for place in (0, 1))
    body = letter.body + CLOSING.format(*near, *far)
    return Letter(letter.number, letter.subject, letter.preheader, body)


def _read(path: Path) -> Iterator[Letter]:
    """Letters stand one after another, each below a line `=== NUMBER | SUBJECT | PREHEADER`."""
    parts = _HEAD.split(path.read_text(encoding="utf-8"))[1:]
    for number, subject, preheader, body in zip(*(iter(parts),) * 4, strict=True):
        yield Letter(int(number), subject, preheader, body.strip() + "\n")
