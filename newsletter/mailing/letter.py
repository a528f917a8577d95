"""A mail as encoded literals with holes: what is laid out once a campaign, so that a person costs a copy and a join."""

from dataclasses import dataclass
from typing import Any, Literal

from newsletter.mailing.quoting import quoted_printable
from newsletter.mailing.slots import Slot

_SOFT = b"=\r\n"
Hole = Slot | Literal["to", "subject", "message id", "control", "track"]
TO, SUBJECT, MESSAGE_ID = 1, 3, 5  # places of these holes, which stand before all others


@dataclass(frozen=True)
class Letter:
    """Encoded parts with a hole for each value, and who fills which holes (a tag that stands twice is filled once)."""

    parts: list[bytes]
    slots: list[tuple[Slot, list[int]]]
    tracks: list[int]
    controls: list[int]

    @classmethod
    def of(cls, encoded: list[bytes | Hole]) -> "Letter":
        parts: list[bytes] = []
        places: dict[Hole, list[int]] = {}
        after_hole = True
        for item in encoded:
            if not isinstance(item, bytes):
                places.setdefault(item, []).append(len(parts))
                parts.append(b"")
            elif after_hole:
                parts.append(item)
            else:
                parts[-1] += item
            after_hole = not isinstance(item, bytes)
        slots = [(hole, holes) for hole, holes in places.items() if isinstance(hole, Slot)]
        return cls(parts, slots, places.get("track", []), places.get("control", []))


def encoded_part(flat: list[tuple[str, Any]]) -> list[bytes | Hole]:
    """A body of ("literal", text) and ("hole", Hole) in quoted-printable, which begins at the start of a line.

    A hole stands on lines of its own (soft breaks around it), so that a value is encoded without knowing what stands
    before it.
    """
    encoded: list[bytes | Hole] = []
    for kind, value in _merged([(kind, value) for kind, value in flat if value != ""]):
        if encoded and not _ends_line(encoded[-1]):
            encoded.append(_SOFT)
        encoded.append(quoted_printable(value) if kind == "literal" else value)
    return encoded


def _merged(flat: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    merged: list[tuple[str, Any]] = []
    for kind, value in flat:
        if kind == "literal" and merged and merged[-1][0] == "literal":
            merged[-1] = ("literal", merged[-1][1] + value)
        else:
            merged.append((kind, value))
    return merged


def _ends_line(item: bytes | Hole) -> bool:
    return isinstance(item, bytes) and item.endswith(b"\n")
