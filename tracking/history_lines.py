"""One line of a history from another platform: read, checked, and refused with a sentence. Pure: no database."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, NamedTuple

from tracking.models import EventKind

SENT = 0  # beside the kinds of events
KINDS = {"sent": SENT, "open": EventKind.OPEN.value, "click": EventKind.CLICK.value, "bounce": EventKind.BOUNCE.value}
LONGEST_LINE = 64 * 1024
_LONGEST = {"email": 320, "campaign": 200, "url": 8_000, "method": 8, "user_agent": 1_000, "ip": 64, "status": 200}
_CLOCK_SKEW = timedelta(hours=1)
_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)


class BadLine(ValueError):
    """The line is not taken; the message says why."""


class Line(NamedTuple):
    """What a line says. `user_agent` is None where the platform did not report it."""

    kind: int
    email: str
    campaign: str
    at: datetime
    url: str
    method: str
    user_agent: str | None
    ip: str
    status: str


def read_line(file: BinaryIO) -> bytes | None:
    """The next line, or None at the end. Of a line that is too long only the beginning is kept in memory."""
    line = file.readline(LONGEST_LINE + 1)
    if not line:
        return None
    if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
        while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
            pass
    return line


def parse(raw: bytes, *, now: datetime) -> Line:
    """Read one line. Raises BadLine with the reason."""
    found = _object(raw)
    kind = KINDS.get(str(found.get("type")))
    if kind is None:
        raise BadLine(f"type must be one of {', '.join(KINDS)}")
    is_click = kind == EventKind.CLICK
    return Line(
        kind=kind,
        email=_text(found, "email").strip(),
        campaign=_text(found, "campaign").strip(),
        at=_moment(_text(found, "at"), now=now),
        url=_link(_text(found, "url")) if is_click else "",
        method=(_text(found, "method", required=False) or "GET").upper(),
        user_agent=_text(found, "user_agent", required=False) if found.get("user_agent") is not None else None,
        ip=_text(found, "ip", required=False),
        status=_text(found, "status", required=False) if kind == EventKind.BOUNCE else "",
    )


def _object(raw: bytes) -> dict[str, Any]:
    if len(raw) > LONGEST_LINE:
        raise BadLine(f"longer than {LONGEST_LINE} bytes")
    try:
        text = raw.decode("utf-8")
        found = json.loads(text)
        if "\\u" in text:
            # JSON can write halves of characters, which no database takes.
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise BadLine("not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise BadLine("not JSON") from error
    if not isinstance(found, dict):
        raise BadLine("not a JSON object")
    return found


def _text(found: dict[str, Any], name: str, *, required: bool = True) -> str:
    value = found.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or (required and not value.strip()):
        raise BadLine(f"{name} is missing" if value in (None, "") else f"{name} must be text")
    if "\x00" in value:
        raise BadLine(f"{name} holds a NUL character")
    if len(value) > _LONGEST.get(name, 100):
        raise BadLine(f"{name} is longer than {_LONGEST.get(name, 100)} characters")
    return value


def _link(url: str) -> str:
    """A page's address: reports show it as a link, which must not run anything."""
    if not url.lower().startswith(("https://", "http://")):
        raise BadLine("url must begin with https:// or http://")
    return url


def _moment(text: str, *, now: datetime) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadLine("at is no ISO time, such as 2025-02-14T08:00:00Z") from error
    if at.tzinfo is None:
        raise BadLine("at has no time zone; end it with Z or an offset")
    if at > now + _CLOCK_SKEW:
        raise BadLine("at lies in the future")
    if at < _EARLIEST:
        raise BadLine("at lies before 1990")
    return at
