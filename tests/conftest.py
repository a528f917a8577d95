"""Fixtures that every stage's tests share: a clock, a mail server that answers for real, a list, its people."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from django.conf import LazySettings
from django.contrib.auth.models import User

from newsletter.env import email_backend, email_url
from newsletter.mailing import transports
from subscribers.models import List, SenderIdentity, Subscriber, Subscription

NOW = datetime(2026, 11, 2, 8, 0, tzinfo=UTC)


@dataclass
class MailServer:
    """A real SMTP server on loopback that keeps what it gets. `answers` maps an address to the reply to its RCPT."""

    port: int = 0
    received: list[Envelope] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    data_answer: str = "250 2.0.0 taken"
    on_message: Callable[[Envelope], None] | None = None
    vanishes: bool = False  # takes the message and goes away without an answer

    async def handle_RCPT(  # noqa: N802  the name that aiosmtpd calls
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.answers:
            return self.answers[address]
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 fine"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.data_answer.startswith("250"):
            self.received.append(envelope)
        if self.on_message:
            self.on_message(envelope)
        if self.vanishes and isinstance(server.transport, asyncio.Transport):
            server.transport.abort()
        return self.data_answer

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    @property
    def contents(self) -> list[bytes]:
        """What was received, byte for byte."""
        return [envelope.content for envelope in self.received if isinstance(envelope.content, bytes)]

    @property
    def messages(self) -> list[EmailMessage]:
        """What was received, parsed strictly: a defect is an error."""
        strict = policy.SMTP.clone(raise_on_defect=True)
        return [message_from_bytes(content, policy=strict) for content in self.contents]

    @property
    def recipients(self) -> list[str]:
        return [address for envelope in self.received for address in envelope.rcpt_tos]


class _Controller(Controller):
    """aiosmtpd's controller on a port that the kernel chooses."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        super()._trigger_server()  # type: ignore[no-untyped-call]


@pytest.fixture
def mail_server(settings: LazySettings) -> Iterator[MailServer]:
    """A mail server, and settings that lead this process's transport and Django's mail to it."""
    logging.getLogger("mail.log").setLevel(logging.ERROR)
    server = MailServer()
    controller = _Controller(server, hostname="127.0.0.1", port=0, enable_SMTPUTF8=True, decode_data=False)
    controller.start()
    server.port = controller.port
    settings.EMAIL_URL = server.url
    settings.MAIL_TRANSPORT = email_url(server.url)
    settings.EMAIL_BACKEND = email_backend(settings.MAIL_TRANSPORT)
    transports.transport.cache_clear()
    yield server
    transports.transport().close()
    transports.transport.cache_clear()
    controller.stop()


@pytest.fixture
def admin_user(db: None) -> User:
    """The owner, for pytest-django's `admin_client`; without a password, whose hashing takes a quarter of a second."""
    return User.objects.create_superuser("admin", "admin@shed.example", first_name="Ada")


@pytest.fixture
def sender() -> SenderIdentity:
    return SenderIdentity.objects.create(
        name="The Potting Shed", email="letters@shed.example", postal_address="1 Garden Row, Bath BA1 1AA"
    )


@pytest.fixture
def garden(sender: SenderIdentity) -> List:
    """A list without anybody on it."""
    return List.objects.create(slug="garden", name="The Potting Shed", sender=sender)


@pytest.fixture
def subscribe() -> Callable[..., list[Subscriber]]:
    """Put `count` people on a list by set; further arguments are fields of the subscribers."""

    def make(
        to: List, count: int, *, state: str = Subscription.State.ACTIVE, prefix: str = "reader", **fields: Any
    ) -> list[Subscriber]:
        people = Subscriber.objects.bulk_create(
            Subscriber(email=f"{prefix}{i}@mail.example", email_key=f"{prefix}{i}@mail.example", **fields)
            for i in range(count)
        )
        Subscription.objects.bulk_create(Subscription(list=to, subscriber=person, state=state) for person in people)
        return people

    return make
