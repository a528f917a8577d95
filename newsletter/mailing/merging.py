"""A compiled mail for a service that merges: one text with placeholders for all, and each person's values beside it.

Literals travel once a call. A person costs their merge tags and two tokens: a link is a literal, a token and a literal.
What a service would take for its own syntax in an editor's text travels as a value, so that it arrives as written; the
names of fields hold a random part, so that neither an editor nor a subscriber can name one.
"""

import functools
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from newsletter.mailing.compiling import Piece
from newsletter.mailing.headers import one_line
from newsletter.mailing.personalizing import PIXEL, Personalizer, Recipient

NONCE = f"n{secrets.token_hex(3)}"


@dataclass(frozen=True)
class Syntax:
    """How a service writes a field whose value it puts in raw ({} is the name), and what else it would read as syntax.

    `special` finds that in a literal; a literal's first and last characters may stand next to a placeholder.
    """

    placeholder: str
    special: re.Pattern[str] | None = None

    def field(self, name: str) -> str:
        return self.placeholder.replace("{}", name)


@dataclass(frozen=True)
class Merge:
    """A mail with placeholders, the one-click address among them, and what one recipient's fields hold."""

    subject: str
    html: str
    text: str
    unsubscribe_url: str
    values: Callable[[Recipient], dict[str, str]]  # raises PersonalizeError


@functools.lru_cache(maxsize=32)
def merged(personalizer: Personalizer, syntax: Syntax, *, tracked: bool) -> Merge:
    """The mail for people who may be tracked, or for those who may not: their links and pixel differ."""
    return _Texts(personalizer, syntax, tracked=tracked).merge()


class _Texts:
    """Placeholders put into the parts of one mail, and the fields that they need."""

    def __init__(self, personalizer: Personalizer, syntax: Syntax, *, tracked: bool) -> None:
        self._compiled = personalizer.compiled
        self._personalizer = personalizer
        self._syntax = syntax
        self._is_tracked = tracked
        self._sources: dict[str, str] = {}  # a merge tag → the field of its value
        self._constants: dict[str, str] = {}  # a literal that must travel as a value → its field
        self._track, self._control, self._subject = (f"{NONCE}{letter}" for letter in "tcs")

    def merge(self) -> Merge:
        parts = (self._compiled.html, self._compiled.text)
        page, text = (self._text([found for piece in part for found in self._flat(piece)]) for part in parts)
        subject = self._subject_line()
        unsubscribe = f"{self._personalizer.addresses.site}/u/{self._syntax.field(self._control)}"
        return Merge(subject, page, text, unsubscribe, values=self._values())

    def _subject_line(self) -> str:
        """A subject with tags is one field: only as a whole can it be made one line."""
        if any(not isinstance(piece, str) for piece in self._compiled.subject):
            return self._syntax.field(self._subject)
        return self._text([("literal", one_line("".join(map(str, self._compiled.subject))))])

    def _values(self) -> Callable[[Recipient], dict[str, str]]:
        names, fill = list(self._sources.values()), self._personalizer.filler(list(self._sources))
        constants = {name: literal for literal, name in self._constants.items()}
        track, control, subject = self._track, self._control, self._subject
        has_subject = any(not isinstance(piece, str) for piece in self._compiled.subject)

        def values(recipient: Recipient) -> dict[str, str]:
            tokens, line, filled = fill(recipient)
            found = dict(zip(names, filled, strict=True))
            found[track], found[control] = tokens.track, tokens.control
            if has_subject:
                found[subject] = one_line(line)
            if constants:
                found.update(constants)
            return found

        return values

    def _flat(self, piece: Piece) -> Iterator[tuple[str, str]]:
        """A piece as literals and fields."""
        addresses = self._personalizer.addresses
        if isinstance(piece, str):
            yield "literal", piece
        elif piece[0] == "liquid":
            yield "field", self._sources.setdefault(piece[1], f"{NONCE}{len(self._sources)}")
        elif piece[0] == "control":
            yield "literal", f"{addresses.site}/{piece[1]}/"
            yield "field", self._control
        elif piece[0] == "link" and not self._is_tracked:
            yield "literal", self._personalizer.target(piece)
        elif piece[0] == "link":
            yield "literal", f"{addresses.edge}/c/"
            yield "field", self._track
            yield "literal", f"/{piece[1]}"
        elif self._is_tracked:
            before, after = PIXEL.split("{}")
            yield "literal", f"{before}{addresses.edge}/o/"
            yield "field", self._track
            yield "literal", f".gif{after}"

    def _text(self, flat: list[tuple[str, str]]) -> str:
        texts: list[str] = []
        literal = ""
        for kind, value in flat:
            if kind == "literal":
                literal += value
            else:
                texts += [self._harmless(literal), self._syntax.field(value)]
                literal = ""
        return "".join((*texts, self._harmless(literal)))

    def _harmless(self, literal: str) -> str:
        """A literal in which nothing is the service's syntax: what would be is named, and travels as a value."""
        if self._syntax.special is None:
            return literal

        def lift(found: re.Match[str]) -> str:
            name = self._constants.setdefault(found.group(), f"{NONCE}k{len(self._constants)}")
            return self._syntax.field(name)

        return self._syntax.special.sub(lift, literal)
