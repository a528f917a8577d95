"""Make an installation usable: its owner, the sender of its mail, and a first list.

The command and the page of the first run both come here. The page is for whoever holds the set-up token, which stands
in the server's log and settings, and only until there is an owner.
"""

import base64
import hmac
from dataclasses import dataclass

from django.conf import settings
from django.contrib.auth.models import User
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.utils.text import slugify
from django.utils.translation import gettext as _

from subscribers import listing, validating
from subscribers.models import List, SenderIdentity

FIRST_SLUG = "newsletter"  # where a name holds no letter that an address can show


class BadAnswer(ValueError):
    """An answer that cannot be used: which one, and one sentence why."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class AlreadyFounded(Exception):
    """There is an owner; the first-run page is closed."""


@dataclass(frozen=True)
class Answers:
    """What the owner says about themselves and their newsletter."""

    owner_email: str
    password: str  # "" keeps the one of an owner who is there already
    list_name: str
    sender_email: str
    postal_address: str
    sender_name: str = ""  # the list's name without one
    slug: str = ""  # made from the list's name without one


@dataclass(frozen=True)
class Founded:
    """What there is now; `is_new` where this call made the owner."""

    owner: User
    sender: SenderIdentity
    list: List
    is_new: bool


def is_founded() -> bool:
    """Whether anybody can log in."""
    return User.objects.exists()


def has_owner(email: str) -> bool:
    """Whether this person can log in already."""
    return User.objects.filter(username__iexact=email.strip()).exists()


def setup_token() -> str:
    """What opens the first-run page: SETUP_TOKEN, or else twenty letters that only this installation can make."""
    if settings.SETUP_TOKEN:
        return str(settings.SETUP_TOKEN)
    mac = hmac.digest(settings.SECRET_KEY.encode(), b"first run", "sha256")
    letters = base64.b32encode(mac).decode("ascii").lower()[:20]
    return "-".join(letters[start : start + 5] for start in range(0, 20, 5))


def is_setup_token(text: str) -> bool:
    """Compares in constant time; blanks and capitals of copying do not matter."""
    return hmac.compare_digest(text.strip().lower().encode(), setup_token().lower().encode())


def found(answers: Answers, *, only_once: bool = False) -> Founded:
    """Make or complete owner, sender and list; the same answers again change nothing.

    Raises BadAnswer, and with `only_once` AlreadyFounded when there is an owner: of two strangers who both know the
    token, the first wins.
    """
    email = _address("owner_email", answers.owner_email)
    sender_email = _address("sender_email", answers.sender_email)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('newsletter first run'))")
        if only_once and is_founded():
            raise AlreadyFounded
        owner, is_new = _owner(email, answers.password)
        sender = _sender(sender_email, answers)
        try:
            newsletter, _made = listing.create_list(
                answers.slug or slugify(answers.list_name)[:50] or FIRST_SLUG,
                name=answers.list_name,
                sender=sender.email,
            )
        except listing.BadList as error:
            raise BadAnswer("slug" if answers.slug else "list_name", str(error)) from error
    return Founded(owner, sender, newsletter, is_new)


def _address(name: str, text: str) -> str:
    try:
        return validating.normalise(text).email
    except validating.InvalidAddress as error:
        raise BadAnswer(name, str(error)) from error


def _owner(email: str, password: str) -> tuple[User, bool]:
    users = User.objects
    owner = users.filter(username__iexact=email).first()
    if owner is None:
        check_password(email, password)
        return users.create_superuser(username=email, email=email, password=password), True
    if not (owner.is_staff and owner.is_superuser and owner.is_active):
        users.filter(pk=owner.pk).update(is_staff=True, is_superuser=True, is_active=True)
    return owner, False


def check_password(email: str, password: str) -> None:
    """Raises BadAnswer when the password is too weak."""
    try:
        validate_password(password, User(username=email, email=email))
    except ValidationError as error:
        raise BadAnswer("password", " ".join(error.messages)) from error


def _sender(email: str, answers: Answers) -> SenderIdentity:
    postal_address = " ".join(answers.postal_address.split())
    name = " ".join((answers.sender_name or answers.list_name).split())
    if not postal_address:
        raise BadAnswer("postal_address", _("Many laws want a postal address in every mail; please give one."))
    if len(postal_address) > 300:
        raise BadAnswer("postal_address", _("A postal address has at most 300 characters."))
    if not name or len(name) > 120:
        raise BadAnswer("sender_name", _("A sender needs a name of up to 120 characters."))
    sender, _made = SenderIdentity.objects.update_or_create(
        email=email, defaults={"name": name, "postal_address": postal_address}
    )
    return sender
