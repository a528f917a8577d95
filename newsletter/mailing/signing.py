"""DKIM signatures (RFC 6376, Ed25519 by RFC 8463) for mail servers that do not sign by themselves.

Both parts are canonicalised "relaxed". The signature is made by the `cryptography` package: 0.3 ms for an RSA key of
2,048 bits and 0.03 ms for Ed25519, where dkimpy's own arithmetic took 7 ms (2 cores, a message of 12 KB); dkimpy
verifies what is made here in the tests.
"""

import contextlib
import hashlib
import os
import re
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from newsletter.mailing.headers import HeaderError, address_domain

PrivateKey = RSAPrivateKey | Ed25519PrivateKey

# What a receiver shows, sorts or unsubscribes by. Those that a message does not have are left out.
SIGNED = (
    *("from", "to", "subject", "date", "message-id", "reply-to", "list-id", "list-unsubscribe"),
    *("list-unsubscribe-post", "feedback-id", "mime-version", "content-type", "content-transfer-encoding"),
)
# Named once more than they stand there, so that nobody can add another without breaking the signature (5.4).
OVERSIGNED = ("from", "to", "subject", "date", "reply-to")
SHORTEST_RSA = 1_024  # bits (RFC 8301); receivers ignore shorter keys
RSA_BITS = 2_048  # of a key made here; longer ones do not fit every DNS and are slow
EVERY_DOMAIN = ""
_SELECTOR = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")
_WHITE = re.compile(rb"[ \t]+")
_LINE = 72


class KeyProblem(ValueError):
    """A key or selector that nothing can be signed with; the text is a sentence without the key."""


class Signer:
    """Signs messages of one domain: called with a message, it gives the header that goes in front of it."""

    def __init__(self, key: PrivateKey, *, domain: str, selector: str, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._clock = clock
        algorithm = "rsa-sha256" if isinstance(key, RSAPrivateKey) else "ed25519-sha256"
        self._start = f"v=1; a={algorithm}; c=relaxed/relaxed;\r\n d={domain}; s={selector};\r\n t=".encode("ascii")

    def __call__(self, content: bytes) -> bytes:
        """The `DKIM-Signature` header, with its line's end, of a message with CRLF line ends."""
        head, _, body = content.partition(b"\r\n\r\n")
        body_hash = b64encode(hashlib.sha256(relaxed_body(body)).digest())
        names, fields = signed_fields(head)
        unsigned = b"%b%d;\r\n h=%b;\r\n bh=%b;\r\n b=" % (self._start, int(self._clock()), _named(names), body_hash)
        last = b"dkim-signature:" + unsigned.replace(b"\r\n ", b" ")
        signature = b64encode(self._signature(b"\r\n".join((*fields, last))))
        lines = b"\r\n ".join(signature[at : at + _LINE] for at in range(0, len(signature), _LINE))
        return b"DKIM-Signature: " + unsigned + lines + b"\r\n"

    def _signature(self, data: bytes) -> bytes:
        if isinstance(self._key, RSAPrivateKey):
            return self._key.sign(data, PKCS1v15(), hashes.SHA256())
        return self._key.sign(hashlib.sha256(data).digest())


# Canonical forms ---------------------------------------------------------------------------------------------------


def relaxed_body(body: bytes) -> bytes:
    """A body by RFC 6376, 3.4.4: runs of white space are one space, none at line ends, no empty lines at the end."""
    body = body.replace(b"\t", b" ")
    while b"  " in body:  # each turn halves the longest run (47 µs for 12 KB; by a regular expression 230)
        body = body.replace(b"  ", b" ")
    body = body.replace(b" \r\n", b"\r\n").removesuffix(b" ")
    while body.endswith(b"\r\n"):
        body = body[:-2]
    return body + b"\r\n" if body else b""


def signed_fields(head: bytes) -> tuple[tuple[bytes, ...], list[bytes]]:
    """The names to sign, in order, and the canonical fields (3.4.2) of those that a message has.

    Several fields of one name are taken from the last to the first (5.4.2).
    """
    found: dict[bytes, list[bytes]] = {}
    for name, value in _fields(head):
        found.setdefault(name, []).append(value)
    names: list[bytes] = []
    fields: list[bytes] = []
    for name in _SIGNED:
        for value in reversed(found.get(name, ())):
            names.append(name)
            fields.append(b"%b:%b" % (name, value))
    return (*names, *_OVERSIGNED), fields


def _fields(head: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The header fields of a message in canonical form."""
    for line in head.replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ").split(b"\r\n"):
        name, _, value = line.partition(b":")
        yield name.strip().lower(), _WHITE.sub(b" ", value).strip(b" ")


_SIGNED = tuple(name.encode("ascii") for name in SIGNED)
_OVERSIGNED = tuple(name.encode("ascii") for name in OVERSIGNED)


@lru_cache(maxsize=64)
def _named(names: tuple[bytes, ...]) -> bytes:
    """Names joined by colons and folded."""
    lines = [b""]
    for name in names:
        if len(lines[-1]) + len(name) > _LINE:
            lines.append(b"")
        lines[-1] += name + b":"
    return b"\r\n ".join(lines)[:-1]


# Keys --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keys:
    """The keys of this installation by domain (`EVERY_DOMAIN` for one that signs for all), under one selector."""

    selector: str
    by_domain: Mapping[str, PrivateKey] = field(repr=False)
    files: tuple[Path, ...] = ()

    def key(self, domain: str) -> PrivateKey | None:
        """The key that signs for a domain, written with A-labels."""
        return self.by_domain.get(domain.lower()) or self.by_domain.get(EVERY_DOMAIN)

    def signer(self, domain: str) -> Signer | None:
        """Signs for a domain; None where no key is for it."""
        key = self.key(domain)
        return Signer(key, domain=domain.lower(), selector=self.selector) if key else None

    def signed(self, content: bytes) -> bytes:
        """Any message with its signature in front; as it is where no key is for the domain of its From."""
        for name, value in _fields(content.partition(b"\r\n\r\n")[0]):
            if name == b"from":
                address = value.decode("utf-8", "replace").rpartition("<")[2].rstrip("> ")
                with contextlib.suppress(HeaderError):
                    signer = self.signer(address_domain(address))
                    return signer(content) + content if signer else content
        return content

    def record(self, domain: str) -> str:
        """What to publish at `SELECTOR._domainkey.DOMAIN`; empty where no key is for it."""
        key = self.key(domain)
        return record_of(key) if key else ""


def read_keys(*, path: str = "", pem: str = "", selector: str) -> Keys | None:
    """The keys of a file, of a folder of files named `DOMAIN.pem`, or of a text; None where neither is named.

    Raises KeyProblem.
    """
    if not (path or pem):
        return None
    if path and pem:
        raise KeyProblem("DKIM_KEY_FILE and DKIM_PRIVATE_KEY are both set; keep one")
    if not selector:
        raise KeyProblem("There is a DKIM key and no DKIM_SELECTOR, under which receivers look for its other half")
    check_selector(selector)
    if pem:
        # A file of settings holds one line: the ends of lines are written as \n.
        return Keys(selector, {EVERY_DOMAIN: load_key(pem.replace("\\n", "\n").encode(), named="DKIM_PRIVATE_KEY")})
    if not Path(path).is_dir():
        return Keys(selector, {EVERY_DOMAIN: load_key(_read(Path(path)), named=path)}, (Path(path),))
    files = tuple(sorted(Path(path).glob("*.pem")))
    if not files:
        raise KeyProblem(f"DKIM_KEY_FILE is the folder {path}, which holds no file such as example.org.pem")
    return Keys(selector, {file.stem.lower(): load_key(_read(file), named=str(file)) for file in files}, files)


def check_selector(selector: str) -> None:
    """Raises KeyProblem for one that cannot stand in a host name."""
    if not _SELECTOR.fullmatch(selector):
        raise KeyProblem(f"DKIM_SELECTOR is {selector!r}; it may hold letters, digits, hyphens and dots between them")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyProblem(f"The DKIM key {path} cannot be read: {error.strerror}") from error


def load_key(pem: bytes, *, named: str) -> PrivateKey:
    """A private key in PEM. Raises KeyProblem that says where it comes from."""
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise KeyProblem(f"The DKIM key {named} is protected by a password; store it without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyProblem(f"The DKIM key {named} is no private key in PEM (-----BEGIN PRIVATE KEY-----)") from error
    if not isinstance(key, RSAPrivateKey | Ed25519PrivateKey):
        raise KeyProblem(f"The DKIM key {named} is of a kind that DKIM does not know; it must be RSA or Ed25519")
    if isinstance(key, RSAPrivateKey) and key.key_size < SHORTEST_RSA:
        raise KeyProblem(f"The DKIM key {named} has {key.key_size} bits; receivers ask for {SHORTEST_RSA} and more")
    return key


def make_key(*, ed25519: bool = False) -> bytes:
    """A new private key in PEM."""
    key = Ed25519PrivateKey.generate() if ed25519 else generate_private_key(public_exponent=65_537, key_size=RSA_BITS)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_at(path: Path, *, ed25519: bool = False) -> tuple[PrivateKey, bool]:
    """The key of a file, made with its folder where it is missing, and whether it was. Raises KeyProblem."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return load_key(_read(path), named=str(path)), False
    except OSError as error:
        raise KeyProblem(f"The DKIM key {path} cannot be written: {error.strerror}") from error
    with os.fdopen(number, "wb") as file:
        file.write(make_key(ed25519=ed25519))
    return load_key(_read(path), named=str(path)), True


def record_of(key: PrivateKey) -> str:
    """The DNS record (TXT) with the public half of a key."""
    public = key.public_key()
    if isinstance(key, Ed25519PrivateKey):
        return f"v=DKIM1; k=ed25519; p={_text(public.public_bytes(Encoding.Raw, PublicFormat.Raw))}"
    return f"v=DKIM1; k=rsa; p={_text(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))}"


def _text(raw: bytes) -> str:
    return b64encode(raw).decode("ascii")
