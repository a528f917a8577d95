"""Header fields as MAIL.md asks for them. No value that an editor or an import gave can start another header."""

import re
from email.header import Header

import idna

_NOT_ALLOWED = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]+")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~ ]*\Z")
FOLD_AT = 76


class HeaderError(ValueError):
    """A value that cannot stand in a header; the text is a sentence."""


def one_line(value: str) -> str:
    """The value without control characters; runs of white space become one space."""
    return " ".join(_NOT_ALLOWED.sub(" ", value).split())


def unstructured(value: str, *, name: str) -> bytes:
    """`Name: value` for free text, RFC 2047-encoded and folded where needed, without the line's end."""
    text = one_line(value)
    if text.isascii() and len(name) + 2 + len(text) <= FOLD_AT and "=?" not in text:
        return f"{name}: {text}".encode("ascii")
    charset = "us-ascii" if text.isascii() and "=?" not in text else "utf-8"
    folded = Header(text, charset, maxlinelen=FOLD_AT, header_name=name).encode(linesep="\r\n")
    return f"{name}: {folded}".encode("ascii")


def address_domain(address: str) -> str:
    """The domain of an address as A-labels (RFC 5890); raises HeaderError when it cannot be one."""
    local, _, domain = address.rpartition("@")
    if not local or not domain:
        raise HeaderError(f"{one_line(address)} is not an e-mail address")
    if domain.isascii():
        return domain.lower()
    try:
        return idna.encode(domain, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        raise HeaderError(f"the domain of {one_line(address)} cannot be written in a mail") from error


def wire_address(address: str) -> str:
    """An address as it goes on the wire: A-labels in the domain, the local part as it is."""
    if _NOT_ALLOWED.search(address) or any(character in address for character in '<> "(),:;\\'):
        raise HeaderError(f"{one_line(address)} is not an e-mail address that can be mailed")
    return f"{address.rpartition('@')[0]}@{address_domain(address)}"


def mailbox(value_name: str, address: str, *, header: str) -> bytes:
    """`From: Name <address>` and its like, without the line's end; the name quoted or encoded as it needs."""
    name = one_line(value_name)
    wire = wire_address(address)
    if not name:
        return f"{header}: {wire}".encode()
    if _ATOMS.match(name):
        shown = name
    elif name.isascii() and "=?" not in name:
        shown = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    else:
        shown = Header(name, "utf-8", maxlinelen=60, header_name=header).encode(linesep="\r\n")
    separator = " " if len(header) + len(shown.rsplit("\r\n", 1)[-1]) + len(wire) + 5 <= FOLD_AT else "\r\n "
    return f"{header}: {shown}{separator}<{wire}>".encode()


def list_id(name: str, slug: str, domain: str) -> bytes:
    """`List-Id` (RFC 2919): a description and an identifier that never changes."""
    identifier = f"<{slug}.{address_domain('x@' + domain)}>".encode("ascii")
    phrase = mailbox(name, f"x@{domain}", header="List-Id").rsplit(b"<", 1)[0].rstrip() if one_line(name) else b""
    return phrase + b"\r\n " + identifier if phrase else b"List-Id: " + identifier


def needs_smtputf8(address: str) -> bool:
    """Whether the local part holds what only SMTPUTF8 servers take (RFC 6531)."""
    return not address.rpartition("@")[0].isascii()
