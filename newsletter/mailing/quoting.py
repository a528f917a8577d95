"""Quoted-printable (RFC 2045) so that no line starts with a dot: what is written needs no stuffing for SMTP."""

import binascii
import re

_SAFE = re.compile(r"[!-<>-~][ -<>-~]{0,68}[!-<>-~]|[!-<>-~]|")
_DOT_LINE = re.compile(rb"(?m)^\.")


def quoted_printable(text: str) -> bytes:
    """Text as quoted-printable with CRLF line ends; no line starts with a dot, so SMTP need not stuff any.

    It may end without a line end; it must begin at the start of a line.
    """
    normal = text.replace("\r\n", "\n").replace("\r", "\n")
    encoded = binascii.b2a_qp(normal.encode("utf-8", "replace"), quotetabs=False, istext=True)
    if _DOT_LINE.search(encoded):
        encoded = b"\n".join(_undotted(line) for line in encoded.split(b"\n"))
    return encoded.replace(b"\n", b"\r\n")


def _undotted(line: bytes) -> bytes:
    if not line.startswith(b"."):
        return line
    line = b"=2E" + line[1:]
    if len(line) <= 76:
        return line
    # Two characters longer: past the 76 of RFC 2045 the rest goes to a line of its own, but no escape is cut in two.
    escape = line.find(b"=", 68, 70)
    cut = 70 if escape < 0 else escape
    return line[:cut] + b"=\n" + _undotted(line[cut:])


def quoted_value(value: str) -> bytes:
    """A slot's value as quoted-printable, standing at the start of a line."""
    if _SAFE.fullmatch(value) and not value.startswith("."):
        return value.encode("ascii")
    return quoted_printable(value)
