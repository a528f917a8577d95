"""TLS and logins against real servers: what is encrypted and verified, and the one sentence when it cannot be."""

import contextlib
import logging
import select
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from django.conf import LazySettings
from django.core.mail import EmailMessage

from newsletter.env import email_url
from newsletter.mailing.personalizing import Message
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports import smtp_opening
from newsletter.mailing.transports.base import Report, Result, TransportError
from newsletter.mailing.transports.smtp import SmtpTransport
from newsletter.mailing.transports.smtp_connection import Connection, Lost
from tests.conftest import MailServer, _Controller
from tests.newsletter.mailing.building import compiled, personalizer
from tests.newsletter.mailing.certificates import Certified, certified
from tests.newsletter.mailing.test_smtp import FOREVER, MAIL, people

USER, PASSWORD = "news@shed.example", "pass, word@1/2"
LOGIN = "news%40shed.example:pass%2C%20word%401%2F2@"


class Pipelining(MailServer):
    """A server that offers PIPELINING, which aiosmtpd understands and does not say."""

    async def handle_EHLO(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        return [*responses[:-1], "250-PIPELINING", responses[-1]]


def _checked(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: LoginPassword) -> AuthResult:
    right = (data.login, data.password) == (USER.encode(), PASSWORD.encode())
    # What some servers answer: the name that was tried.
    message = None if right else f"535 5.7.8 {data.login.decode()} / {data.password.decode()} is not known"
    return AuthResult(success=right, handled=False, message=message)


@contextlib.contextmanager
def running(server: MailServer, **how: Any) -> Iterator[MailServer]:
    logging.getLogger("mail.log").setLevel(logging.CRITICAL)
    controller = _Controller(server, hostname="127.0.0.1", port=0, decode_data=False, **how)
    controller.start()
    server.port = controller.port
    yield server
    controller.stop()


@pytest.fixture
def tls(tmp_path: Path) -> Certified:
    return certified(tmp_path)


def smtps(server: MailServer, tls: Certified | None, *, login: str = "", more: str = "") -> str:
    ca = f"&ca={tls.authority}" if tls else ""
    return f"smtps://{login}127.0.0.1:{server.port}?connections=2{ca}{more}"


def starttls(server: MailServer, tls: Certified | None, *, login: str = LOGIN) -> str:
    return smtps(server, tls, login=login, more="&starttls=1").replace("smtps:", "smtp:")


def accepted(url: str, count: int, mail: Any = MAIL) -> bool:
    transport = SmtpTransport(email_url(url))
    reports = list(transport.deliver(mail, people(count), until=lambda: FOREVER))
    transport.close()
    return [report.result for report in reports] == [Result.ACCEPTED] * count


def refusal(url: str) -> str:
    with pytest.raises(TransportError) as refused:
        accepted(url, 1)
    sentence = str(refused.value)
    assert sentence.startswith("The mail server 127.0.0.1:")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    for secret in (USER, "shed.example", PASSWORD, "pass,", "wrong"):
        assert secret not in sentence
    return sentence


@pytest.mark.parametrize("kind", [MailServer, Pipelining])
def test_tls_from_the_start_carries_many_and_big_messages(kind: type[MailServer], tls: Certified) -> None:
    mail = personalizer(compiled("Hello {{ name }}\n\n" + "a long text, line by line\n" * 20_000))
    with running(kind(), ssl_context=tls.context) as server:
        assert accepted(smtps(server, tls), 30)
        assert accepted(smtps(server, tls), 4, mail)
    assert server.contents[-1] in {mail.message(one).content for one in people(4)}
    assert len(set(server.recipients)) == 30


@pytest.mark.parametrize("kind", [MailServer, Pipelining])
def test_starttls_and_a_login_come_before_the_mail(kind: type[MailServer], tls: Certified) -> None:
    how = {"tls_context": tls.context, "require_starttls": True, "auth_required": True, "authenticator": _checked}
    with running(kind(), **how) as server:
        assert accepted(starttls(server, tls), 12)
    assert len(server.received) == 12


def test_djangos_own_mail_goes_the_same_way(tls: Certified, settings: LazySettings) -> None:
    settings.EMAIL_BACKEND = "newsletter.mailing.backend.EmailBackend"
    how = {"tls_context": tls.context, "require_starttls": True, "auth_required": True, "authenticator": _checked}
    with running(MailServer(), **how) as one, running(MailServer(), ssl_context=tls.context) as two:
        for url in (starttls(one, tls), smtps(two, tls)):
            settings.MAIL_TRANSPORT = email_url(url)
            assert EmailMessage("Hello", "Text", "ann@shed.example", ["bea@mail.example"]).send() == 1
    assert len(one.received) == len(two.received) == 1


def test_a_certificate_of_an_unknown_authority_is_refused(tls: Certified) -> None:
    with running(MailServer(), ssl_context=tls.context) as server:
        assert "certificate is not trusted (unable to get local issuer" in refusal(smtps(server, None))
    with running(MailServer(), tls_context=tls.context) as server:
        assert "certificate is not trusted" in refusal(starttls(server, None))
    assert not server.received


def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    other = certified(tmp_path, address="192.0.2.1")
    with running(MailServer(), ssl_context=other.context) as server:
        assert "IP address mismatch" in refusal(smtps(server, other))


def test_a_certificate_that_ran_out_is_refused(tmp_path: Path) -> None:
    old = certified(tmp_path, until=-timedelta(hours=1))
    with running(MailServer(), ssl_context=old.context) as server:
        assert "expired" in refusal(smtps(server, old))


def test_a_wrong_password_is_told_without_showing_it_or_the_name(tls: Certified) -> None:
    how = {"tls_context": tls.context, "auth_required": True, "authenticator": _checked}
    with running(MailServer(), **how) as server:
        url = starttls(server, tls, login="news%40shed.example:wrong@")
        assert "refuses the user name or the password of EMAIL_URL (5.7.8)" in refusal(url)


def test_a_login_where_none_is_offered_is_told() -> None:
    with running(MailServer()) as server:
        assert "offers no login" in refusal(f"smtp://{LOGIN}127.0.0.1:{server.port}")


@pytest.mark.filterwarnings("ignore:Requiring AUTH")
def test_a_server_that_wants_a_login_and_gets_none_fails_nobody() -> None:
    """530 (RFC 4954) is about us, not about the recipient: nobody may be marked as failed for it."""
    with running(Pipelining(), auth_required=True, auth_require_tls=False, authenticator=_checked) as server:
        transport = SmtpTransport(email_url(server.url))
        reports = list(transport.deliver(MAIL, people(3), until=lambda: FOREVER))
        transport.close()
    assert {report.result for report in reports} <= {Result.NOT_SENT}


def test_starttls_where_none_is_offered_sends_nothing() -> None:
    with running(MailServer()) as server:
        assert "offers no STARTTLS" in refusal(f"smtp://{LOGIN}127.0.0.1:{server.port}?starttls=1")


def test_tls_at_a_plain_port_is_explained() -> None:
    with running(MailServer()) as server:
        assert "smtps:// is TLS from the start" in refusal(smtps(server, None))


def test_plain_text_at_a_tls_port_is_given_up_in_time(tls: Certified, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp_opening, "CONNECT_SECONDS", 0.2)
    with running(MailServer(), ssl_context=tls.context) as server:
        assert "no answer within" in refusal(server.url)


def test_a_port_where_nobody_listens_is_explained() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert f"127.0.0.1:{port} cannot be used: Connection refused" in refusal(f"smtp://127.0.0.1:{port}")


def test_a_kept_tls_connection_that_the_server_dropped_is_replaced(tls: Certified) -> None:
    with running(Pipelining(), ssl_context=tls.context, timeout=0.2) as server:
        transport = SmtpTransport(email_url(smtps(server, tls)))
        for _ in range(2):
            reports = list(transport.deliver(MAIL, people(4), until=lambda: FOREVER))
            assert [report.result for report in reports] == [Result.ACCEPTED] * 4
            connections = [connection for connection, _ in transport._servers[0]._kept]
            assert connections
            wait_until_closed([connection.socket for connection in connections])
        transport.close()
    assert len(server.received) == 8


def wait_until_closed(sockets: list[socket.socket]) -> None:
    """Until the other side has ended each."""
    import select

    for one in sockets:
        ready, _, _ = select.select([one], [], [], 10)
        assert ready


def hear(connection: Connection) -> None:
    """Take what the server says, until the connection is lost."""
    while True:
        select.select([connection], [], [])
        connection.receive()


def test_a_message_that_left_before_the_write_it_stood_in_stalled_is_in_doubt(tls: Certified) -> None:
    """TLS writes record by record: the server has the first, with a whole message, and the rest never leaves."""
    here, there = socket.socketpair()
    trusting = ssl.create_default_context(cafile=str(tls.authority))

    def take_one_message() -> None:
        with tls.context.wrap_socket(there, server_side=True) as server:
            seen = b""
            while not seen.endswith(b"DATA\r\n"):
                seen += server.recv(4_096)
            server.sendall(b"250 fine\r\n250 fine\r\n354 go on\r\n")
            while b"\r\n.\r\n" not in seen:
                seen += server.recv(4_096)

    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(take_one_message)
        connection = Connection(
            trusting.wrap_socket(here, server_hostname="127.0.0.1"), pipelining=True, eight_bit=True, smtputf8=False
        )
        # The next envelope, in the same write, is more than the socket holds.
        messages = [
            Message(
                DeliveryKey(1, number), "a@shed.example", f"{'p' * length}@x.example", b"Subject: Rain\r\n\r\nHi\r\n"
            )
            for number, length in ((1, 1), (2, 3_000_000))
        ]
        reports: list[Report] = []
        unsent: list[Message] = []
        connection.next_message = lambda: messages.pop(0) if messages else None
        connection.report, connection.unsent = reports.append, unsent.append
        connection.begin()
        with pytest.raises(Lost):
            hear(connection)
        served.result()
    assert [(report.key.subscriber_id, report.result) for report in reports] == [(1, Result.UNKNOWN)]
    assert [message.key.subscriber_id for message in unsent] == [2]
