"""What a mail service's answers, and its silences, come to for each person and for the service as a whole."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from django.conf import LazySettings

from newsletter import env
from newsletter.mailing.bounces import BounceClass, classify
from newsletter.mailing.personalizing import Recipient
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports import esp as esp_module
from newsletter.mailing.transports import esp_answers, transport_for
from newsletter.mailing.transports.base import Report, Result, TransportError
from newsletter.mailing.transports.esp import EspTransport
from newsletter.mailing.transports.esp_answers import Answer
from newsletter.mailing.transports.providers import WITHOUT_KEY_LIMIT
from tests.newsletter.mailing.building import compiled, person, personalizer
from tests.newsletter.mailing.esp_services import WIRES, Service, running

MAIL = personalizer(compiled("Hello {{ name }}"))
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
FOREVER = datetime.now(UTC) + timedelta(days=1)
BUSY = (429, {"Retry-After": "90"}, {"message": "too many requests"})


def people(count: int, **more: object) -> list[Recipient]:
    return [person(key=DeliveryKey(7, i + 1), email=f"p{i}@mail.example", **more) for i in range(count)]


class Sending:
    """A transport and its service, and what a delivery came to."""

    def __init__(self, transport: EspTransport, service: Service) -> None:
        self.transport = transport
        self.service = service
        self.reports: list[Report] = []
        self.begun: list[DeliveryKey] = []
        self.error: TransportError | None = None

    def deliver(self, to: list[Recipient], *, until: Callable[[], datetime] = lambda: FOREVER) -> dict[int, Result]:
        self.reports, self.error = [], None
        try:
            for report in self.transport.deliver(MAIL, to, until=until, begins=self.begun.append):
                self.reports.append(report)
        except TransportError as error:
            self.error = error
        results = {report.key.subscriber_id: report.result for report in self.reports}
        assert len(results) == len(self.reports), "nobody is reported twice"
        return results


@pytest.fixture
def sending(settings: LazySettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Sending]]:
    """Start a service and lead a transport to it: `sending("mailgun", connections=1)`."""
    monkeypatch.setattr(esp_module, "AGAIN_SECONDS", 0)
    with _services(settings) as start:
        yield start


@contextmanager
def _services(settings: LazySettings) -> Iterator[Callable[..., Sending]]:
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(scheme: str, *, connections: int = 4) -> Sending:
            service = stack.enter_context(running(Service(WIRES[scheme].take)))
            address = WIRES[scheme].url.format(f"http://127.0.0.1:{service.port}")
            url = env.email_url(f"{address}&connections={connections}")
            settings.ANYMAIL = env.anymail_settings(url)
            transport = transport_for(url)
            assert isinstance(transport, EspTransport)
            stack.callback(transport.close)
            return Sending(transport, service)

        yield start


Start = Callable[..., Sending]


@pytest.mark.parametrize("scheme", ["mailgun", "sendgrid", "brevo", "sparkpost", "resend", "mailjet"])
def test_one_bad_address_of_a_thousand_is_found_by_halving_and_fails_alone(sending: Start, scheme: str) -> None:
    of = sending(scheme)
    of.service.refuses = {"p617@mail.example"}
    results = of.deliver(people(1_000))
    assert [key for key, result in results.items() if result is not Result.ACCEPTED] == [618]
    (failed,) = [report for report in of.reports if report.key.subscriber_id == 618]
    assert failed.result is Result.FAILED
    assert "not a valid address" in failed.text
    assert len(of.service.arrived) == 999
    most = 1_000 // WIRES[scheme].people_a_call + 2 * 10
    assert len(of.service.calls) <= most
    assert of.error is None


def test_a_batch_whose_answers_differ_is_believed_for_each(sending: Start) -> None:
    of = sending("postmark")
    said = [
        {"ErrorCode": 0, "Message": "OK", "MessageID": "1"},
        {"ErrorCode": 406, "Message": "Found inactive addresses: p1@mail.example."},
        {"ErrorCode": 300, "Message": "Invalid 'To' address: 'p2@mail.example'."},
        {"ErrorCode": 999, "Message": "something that nobody has heard of"},
    ]
    of.service.answers = [(200, {}, said)]
    results = of.deliver(people(4))
    assert list(results.values()) == [Result.ACCEPTED, *[Result.FAILED] * 3]
    assert "nobody has heard of" in of.reports[3].text


@pytest.mark.parametrize("scheme", list(WIRES))
@pytest.mark.parametrize(("status", "asks"), [(429, True), (503, True), (500, True), (500, False), (503, False)])
def test_a_service_that_is_busy_is_left_alone_for_as_long_as_it_asks(
    sending: Start, scheme: str, status: int, asks: bool
) -> None:
    of = sending(scheme, connections=1)
    headers = {"Retry-After": "90"} if asks else {}
    of.service.answers = [(status, headers, {"message": "not now", "errors": []})] * 20
    results = of.deliver(people(3))
    assert set(results.values()) == {Result.NOT_SENT}
    assert of.error is not None
    assert of.error.retry_after == (timedelta(seconds=90) if asks else None)
    of.service.answers.clear()
    assert set(of.deliver(people(3)).values()) == {Result.ACCEPTED}


def test_the_others_calls_are_waited_for_when_one_is_told_to_wait(sending: Start) -> None:
    of = sending("ses", connections=4)
    of.service.answers = [(0, {}, None), BUSY]
    results = of.deliver(people(50))
    assert list(results.values()).count(Result.ACCEPTED) == len(of.service.arrived)
    assert set(results.values()) == {Result.ACCEPTED, Result.NOT_SENT}
    assert len(results) < 50, "no more are asked for than can be taken"
    assert of.error is not None


def test_a_service_that_breaks_down_over_one_message_is_tried_again_for_it_alone(sending: Start) -> None:
    of = sending("ses", connections=1)
    of.service.answers = [(0, {}, None), (500, {}, {"message": "oops"})]
    assert list(of.deliver(people(5)).values()).count(Result.ACCEPTED) == 4
    assert [report.result for report in of.reports if report.key.subscriber_id == 2] == [Result.DEFERRED]
    assert of.error is None


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_an_account_that_may_not_send_costs_nobody_anything(sending: Start, status: int) -> None:
    of = sending("sendgrid")
    of.service.answers = [(status, {}, {"errors": [{"message": "The from address is not verified"}]})] * 9
    assert set(of.deliver(people(30)).values()) == {Result.NOT_SENT}
    assert "SendGrid cannot be used now" in str(of.error)
    assert "not verified" in str(of.error)


def test_a_service_that_refuses_everybody_is_not_believed(sending: Start) -> None:
    of = sending("mailgun", connections=1)
    of.service.refuses = {one.email for one in people(200)}
    assert set(of.deliver(people(200)).values()) == {Result.NOT_SENT}
    assert of.error is not None
    assert len(of.service.calls) < 60
    assert set(of.deliver(people(3)).values()) == {Result.FAILED}, "three may well be bad"


def test_a_silence_leaves_one_call_unknown_and_ends_the_rest(sending: Start) -> None:
    of = sending("mailgun", connections=1)
    of.service.answers = [(0, {}, None), None]
    results = of.deliver(people(1_000))
    assert len(of.service.calls) == 2
    assert list(results.values()).count(Result.UNKNOWN) == WITHOUT_KEY_LIMIT
    assert list(results.values()).count(Result.ACCEPTED) == WITHOUT_KEY_LIMIT
    assert set(results.values()) == {Result.ACCEPTED, Result.UNKNOWN}
    assert of.error is not None


def test_a_silence_under_a_key_is_asked_again_under_the_same_key(sending: Start) -> None:
    of = sending("resend", connections=1)
    of.service.answers = [None, (409, {}, {"name": "concurrent_idempotent_requests"})]
    assert set(of.deliver(people(5)).values()) == {Result.ACCEPTED}
    first, second, third = of.service.calls
    assert first.body == second.body == third.body
    assert len({call.headers["idempotency-key"] for call in of.service.calls}) == 1
    of.service.calls.clear()
    of.deliver(people(6))
    assert of.service.calls[0].headers["idempotency-key"] != first.headers["idempotency-key"]


def test_a_service_that_stays_silent_under_a_key_leaves_that_call_unknown(sending: Start) -> None:
    of = sending("resend", connections=1)
    of.service.answers = [None] * 9
    assert set(of.deliver(people(150)).values()) == {Result.UNKNOWN}
    assert len(of.reports) == 100
    assert len(of.service.calls) == esp_module.TRIES_UNDER_A_KEY


def test_a_key_that_is_known_already_says_that_the_first_try_came_through(sending: Start) -> None:
    of = sending("brevo", connections=1)
    of.service.answers = [None, (400, {}, {"code": "duplicate_parameter", "message": "key used"})]
    assert set(of.deliver(people(4)).values()) == {Result.ACCEPTED}
    first, second = (call.json["headers"]["idempotencyKey"] for call in of.service.calls)
    assert first == second
    assert len(of.service.arrived) == 4


def test_a_test_mail_is_sent_again_though_it_is_the_same(sending: Start) -> None:
    of = sending("resend", connections=1)
    to = [person(key=DeliveryKey(0, 0))]
    of.deliver(to)
    of.deliver(to)
    assert len({call.headers["idempotency-key"] for call in of.service.calls}) == 2


def test_a_service_that_cannot_be_reached_sends_to_nobody(settings: LazySettings) -> None:
    for scheme, closed in (("mailgun", "http://127.0.0.1:9"), ("ses", "http://127.0.0.1:9")):
        url = env.email_url(WIRES[scheme].url.format(closed))
        settings.ANYMAIL = env.anymail_settings(url)
        transport = transport_for(url)
        assert isinstance(transport, EspTransport)
        of = Sending(transport, Service(WIRES[scheme].take))
        assert set(of.deliver(people(3)).values()) == {Result.NOT_SENT}
        assert "cannot be used now" in str(of.error)
        transport.close()


def test_an_answer_that_nobody_can_read_is_unknown(sending: Start) -> None:
    of = sending("mailgun", connections=1)
    of.service.answers = [(200, {}, {"surprise": True})]
    assert set(of.deliver(people(3)).values()) == {Result.UNKNOWN}
    of.service.answers = [(504, {}, {"message": "gateway timeout"})]
    assert set(of.deliver(people(3)).values()) == {Result.UNKNOWN}


def test_messages_go_out_one_by_one_over_several_kept_sessions_at_once(sending: Start) -> None:
    of = sending("ses", connections=4)
    of.service.delay = threading.Event()
    opener = threading.Thread(target=_set_when, args=(of.service.delay, lambda: of.service.most_at_once >= 4))
    opener.start()
    assert set(of.deliver(people(40)).values()) == {Result.ACCEPTED}
    opener.join()
    assert of.service.most_at_once == 4
    assert len(of.service.connections) == 4, "sessions are kept"
    of.deliver(people(8))
    assert len(of.service.connections) == 4, "over deliveries too"


def _set_when(event: threading.Event, holds: Callable[[], bool]) -> None:
    while not holds():
        event.wait(0.005)
    event.set()


def test_reports_come_as_they_are_known_and_people_are_asked_for_as_they_can_be_taken(sending: Start) -> None:
    of = sending("ses", connections=2)
    asked = 0

    def feed() -> Iterator[Recipient]:
        nonlocal asked
        for one in people(30):
            asked += 1
            yield one

    told = 0
    for report in of.transport.deliver(MAIL, feed(), until=lambda: FOREVER, begins=of.begun.append):
        told += 1
        assert asked <= told + 2 + 1
        assert report.key in of.begun
    assert told == 30


def test_no_call_starts_after_the_lease_has_ended(sending: Start) -> None:
    of = sending("ses", connections=1)
    moments = iter([FOREVER, FOREVER])
    results = of.deliver(people(10), until=lambda: next(moments, NOW - timedelta(days=900)))
    assert list(results.values()) == [Result.ACCEPTED, Result.ACCEPTED, Result.NOT_SENT]
    assert len(of.service.calls) == 2


def test_an_address_that_cannot_be_mailed_and_a_tag_that_fails_cost_their_recipient_only(sending: Start) -> None:
    of = sending("mailgun")
    mail = personalizer(compiled("Hello {{ size | times: 2 | floor }}"))
    to = people(5, fields={"size": 3})
    to[1] = to[1]._replace(email="a b@mail.example")
    to[3] = to[3]._replace(fields={"size": "nan"})
    reports = {report.key: report for report in of.transport.deliver(mail, to, until=lambda: FOREVER)}
    assert [reports[one.key].result.value for one in to] == ["accepted", "failed", "accepted", "failed", "accepted"]
    assert "merge tag" in reports[to[3].key].text


def test_who_has_more_values_than_a_call_for_many_takes_is_sent_to_alone(sending: Start) -> None:
    of = sending("sendgrid")
    mail = personalizer(compiled("Hello {{ fields.story }}"))
    to = people(5)
    to[2] = to[2]._replace(fields={"story": "long " * 3_000})
    assert all(one.result is Result.ACCEPTED for one in of.transport.deliver(mail, to, until=lambda: FOREVER))
    arrived = {one.to: one for one in of.service.arrived}
    assert "long long" in arrived[to[2].email].html
    assert len(arrived) == 5


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "90"}, 90),
        ({"retry-after": "Fri, 01 May 2026 12:02:00 GMT"}, 120),
        ({"Retry-After": "Fri, 01 May 2026 11:00:00 GMT"}, 1),
        ({"Retry-After": "999999"}, 6 * 3600),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "-5"}, None),
        ({"x-sib-ratelimit-reset": "30"}, 30),
        ({"X-RateLimit-Reset": str(int(NOW.timestamp()) + 45)}, 45),
        ({"X-RateLimit-Reset": str((int(NOW.timestamp()) + 45) * 1000)}, 45),
        ({}, None),
    ],
)
def test_the_wait_that_is_asked_for(headers: dict[str, str], wait: int | None) -> None:
    found = esp_answers.wait_asked_for(headers, now=NOW)
    assert (found and round(found.total_seconds())) == wait


def test_an_answer_that_says_nothing_of_somebody_leaves_them_unknown() -> None:
    (one,) = people(1)
    (report,) = esp_answers.reports(Answer(esp_answers.Meaning.TOLD), [one])
    assert report.result is Result.UNKNOWN


@pytest.mark.parametrize(
    ("reason", "code", "is_dead"),
    [
        ("the service: failed", "5.1.0", False),  # Unisender Go says so of a mailbox that is full
        ("the service: rejected", "5.1.0", False),  # Mandrill says so for a rule of the account
        ("550 5.1.1 no such user", "5.1.1", True),
    ],
)
def test_no_label_of_a_service_calls_an_address_dead(reason: str, code: str, is_dead: bool) -> None:
    (reader,) = people(1)
    answer = Answer(esp_answers.Meaning.TOLD, results={reader.email: (Result.FAILED, reason)})
    (report,) = esp_answers.reports(answer, [reader])
    assert (report.result, report.code) == (Result.FAILED, code)
    assert (classify(report.code, report.text) is BounceClass.HARD) is is_dead
