"""An address as a person wrote it becomes the address we mail and the key by which we know them. No DNS, no models."""

import json
import re
import unicodedata
from typing import NamedTuple

from django.utils.translation import gettext as _
from email_validator import EmailNotValidError, validate_email

from newsletter.mailing.bounds import VALUE_LIMIT, is_too_long

MAX_LENGTH = 254  # octets, RFC 3696 erratum 1690
MAX_LOCAL = 64  # octets before the @, RFC 5321 section 4.5.3.1.1
# What nearly all addresses look like. These need none of email-validator's work, which takes 20 times as long.
_PLAIN = re.compile(
    r"(?=.{1,64}@)[a-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}",
    re.IGNORECASE | re.ASCII,
)
_SPECIAL_ENDS = (".arpa", ".invalid", ".local", ".localhost", ".onion")
_GMAIL = {"gmail.com", "googlemail.com"}


class InvalidAddress(ValueError):
    """The text is no address that can be mailed; the message is one sentence for the person who typed it."""


class Address(NamedTuple):
    """`email` is mailed, `key` identifies (case-folded, ASCII domain), `duplicate_hint` only suggests.

    Two addresses with the same hint probably reach the same person (Gmail ignores dots, most providers cut a plus tag);
    nothing is ever merged for it.
    """

    email: str
    key: str
    duplicate_hint: str


def normalise(text: str) -> Address:
    """The one form of an address. Raises InvalidAddress."""
    # The blanks around it come from copying; the ones within are a mistake that the person should see.
    text = text.strip(" \t\u00a0\u200b\ufeff")
    if not text:
        raise InvalidAddress(_("Please enter an e-mail address."))
    if len(text.encode("utf-8", "replace")) > MAX_LENGTH:
        raise InvalidAddress(_("An e-mail address has at most %(limit)d characters.") % {"limit": MAX_LENGTH})
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in text):
        raise InvalidAddress(_("The address holds a line break or another character that no address may hold."))
    local, domain, ascii_domain = _plain(text) or _thorough(text)
    if len(local.encode()) > MAX_LOCAL:
        raise InvalidAddress(_("The part before the @-sign has at most %(limit)d characters.") % {"limit": MAX_LOCAL})
    key = f"{_fold(local)}@{ascii_domain}"
    return Address(f"{local}@{domain}", key, _duplicate_hint(key))


def attributes_problem(values: object) -> str:
    """Why these cannot be a subscriber's attributes; "" if they can."""
    if not isinstance(values, dict):
        return _('The attributes must be an object such as {"city": "Bath"}.')
    for name, value in values.items():
        if is_too_long(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)):
            return _("The field “%(name)s” is longer than %(limit)d kB.") % {
                "name": name,
                "limit": VALUE_LIMIT // 1_000,
            }
    return ""


def _plain(text: str) -> tuple[str, str, str] | None:
    """The parts of an everyday ASCII address, or None where the thorough way must decide."""
    if not _PLAIN.fullmatch(text):
        return None
    local, _at, domain = text.partition("@")
    domain = domain.lower()
    # Two hyphens in third place mark an internationalised label. Reserved names are refused with a reason.
    if any(label[2:4] == "--" for label in domain.split(".")) or domain.endswith(_SPECIAL_ENDS):
        return None
    return local, domain, domain


def _thorough(text: str) -> tuple[str, str, str]:
    try:
        # test_environment admits .test, which demonstrations and tests use and which nobody else can own.
        found = validate_email(text, check_deliverability=False, test_environment=True)
    except EmailNotValidError as error:
        raise InvalidAddress(str(error)) from error
    return found.local_part, found.domain, found.ascii_domain


def _fold(text: str) -> str:
    """Unicode's canonical caseless form, composed (NFC)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def _duplicate_hint(key: str) -> str:
    local, _at, domain = key.rpartition("@")
    local = local.partition("+")[0] or local
    if domain in _GMAIL:
        local, domain = local.replace(".", "") or local, "gmail.com"
    return f"{local}@{domain}"


def masked(email: str) -> str:
    """An address that its owner recognises and nobody else can use: `a•••@example.org`."""
    local, _at, domain = email.rpartition("@")
    return f"{local[:1]}•••@{domain}"
