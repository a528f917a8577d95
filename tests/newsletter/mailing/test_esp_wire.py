"""What arrives at each mail service, merged by its rules, is what SMTP would have sent to the same person."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest
from django.conf import LazySettings
from requests.structures import CaseInsensitiveDict

from newsletter import env
from newsletter.mailing.compiling import Piece
from newsletter.mailing.headers import one_line
from newsletter.mailing.keys import keyring
from newsletter.mailing.personalizing import Personalizer, Recipient
from newsletter.mailing.tokens import DeliveryKey, Purpose, read_delivery
from newsletter.mailing.transports import transport_for
from newsletter.mailing.transports.base import Report, Result
from newsletter.mailing.transports.esp import EspTransport
from newsletter.mailing.transports.providers import PROVIDERS
from tests.newsletter.mailing.building import LETTER, compiled, person, personalizer
from tests.newsletter.mailing.esp_services import WIRES, Arrived, Service, parts_of, running

FOREVER = datetime.now(UTC) + timedelta(days=1)
BODY = """# Hello {{ first_name | default: "friend" }}

100% from {{ city | upcase }}, {{ fields.note }}. [One](https://one.example/?a=1&b=%C3%BC), [two](https://two.example/).

{% for plant in fields.plants %}- {{ plant }}
{% endfor %}

[A link of your own](https://shed.example/{{ city }}), and [out]({{ unsubscribe_url }}).
"""
MAIL = personalizer(compiled(BODY, subject="{{ name }}, hello", layout=LETTER, preheader="for {{ name }}"))
HOSTILE = [
    "{{ name }} {{params.x}} {{{x}}} {{var:x}} {% if x %}",
    "%recipient.x% %recipient.v:d% %unsubscribe_url% 100%",
    "\"double\" 'single' \\ back & <b>bold</b> </td><script>x</script>",
    "two\nlines\r\nand more",
    "🌱 שלום עולם مرحبا 長い名前",
    "-x- <%body%> [unsubscribe] *|NAME|* $&",
    "}",
    "{",
    "%",
    "",
    "a " * 4_000,
]
# What an editor's text may hold that some service would take for its own; a brace and a percent sign beside each slot.
LITERAL = (
    "<style>@media x{.a{width:100%}}</style> %recipient.u% %unsubscribe_url% {{params.x}} {{{x}}} {%if%} {#c#} "
    "{{var:x}} -x- <%body%> *|x|* {"
)


def people() -> list[Recipient]:
    """Everybody has something nasty in each of their values."""
    found = []
    for i, value in enumerate(HOSTILE):
        fields = {"city": value, "note": value, "plants": [value, "rose"]}
        found.append(
            person(
                key=DeliveryKey(7, i + 1),
                email=f"p{i}@mail.example",
                name=value[:150],
                fields=fields,
                is_tracked=i % 4 != 3,
            )
        )
    return found


@pytest.fixture(params=list(WIRES))
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def service(scheme: str) -> Iterator[Service]:
    with running(Service(WIRES[scheme].take)) as service:
        yield service


@pytest.fixture
def esp(scheme: str, service: Service, settings: LazySettings) -> Iterator[EspTransport]:
    url = env.email_url(WIRES[scheme].url.format(f"http://127.0.0.1:{service.port}"))
    settings.ANYMAIL = env.anymail_settings(url)
    transport = transport_for(url)
    assert isinstance(transport, EspTransport)
    yield transport
    transport.close()


Deliver = Callable[[Personalizer, Sequence[Recipient]], list[Report]]


@pytest.fixture
def deliver(esp: EspTransport) -> Deliver:
    def deliver(mail: Personalizer, to: Sequence[Recipient]) -> list[Report]:
        return list(esp.deliver(mail, to, until=lambda: FOREVER))

    return deliver


def by_smtp(mail: Personalizer, to: Recipient) -> EmailMessage:
    message = message_from_bytes(mail.message(to).content, policy=policy.SMTP)
    assert isinstance(message, EmailMessage)
    return message


def same(text: str) -> str:
    """A text whatever its line ends, and without that after its last line."""
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")


def check(mail: Personalizer, to: Recipient, arrived: Arrived, scheme: str) -> None:
    expected = by_smtp(mail, to)
    html, text = parts_of(expected)
    assert arrived.subject == expected["Subject"]
    assert same(arrived.html) == same(html)
    assert same(arrived.text) == same(text)
    if scheme == "ses":
        assert arrived.name == expected["To"].addresses[0].display_name
    else:
        assert arrived.name == one_line(to.name).strip()
    headers = CaseInsensitiveDict(arrived.headers)
    provider = PROVIDERS[scheme]
    for header in sorted(provider.headers | ({"List-Unsubscribe"} if provider.unsubscribe_field else set())):
        assert " ".join(headers[header].split()) == " ".join(str(expected[header]).split()), header
    assert read_delivery(keyring(), Purpose.REPORT, arrived.token) == to.key
    assert not arrived.tracking


def test_each_gets_what_smtp_would_have_sent_them(deliver: Deliver, service: Service, scheme: str) -> None:
    to = people()
    reports = deliver(MAIL, to)
    assert {report.key: report.result for report in reports} == {one.key: Result.ACCEPTED for one in to}
    arrived = {one.to: one for one in service.arrived}
    assert len(service.arrived) == len(arrived) == len(to)
    for one in to:
        check(MAIL, one, arrived[one.email], scheme)


def test_what_looks_like_the_services_syntax_in_a_text_arrives_as_it_was_written(
    deliver: Deliver, service: Service, scheme: str
) -> None:
    plain = compiled(BODY)
    name, city = ["liquid", "{{ name | _html }}"], ["liquid", "{{ city | _html }}"]
    html: list[Piece] = [
        LITERAL,
        name,
        "}%",
        city,
        "%recipient.",
        name,
        "}} {",
        ["control", "u"],
        "}",
        ["link", 0],
        "%",
        ["pixel"],
    ]
    text: list[Piece] = [LITERAL, ["liquid", "{{ name | _plain }}"], "%}", ["control", "w"], " end {"]
    mail = personalizer(replace(plain, subject=[LITERAL[:90]], html=html, text=text))
    to = people()
    deliver(mail, to)
    arrived = {one.to: one for one in service.arrived}
    for one in to:
        check(mail, one, arrived[one.email], scheme)


def test_two_people_with_one_address_get_a_mail_each(deliver: Deliver, service: Service, scheme: str) -> None:
    ada = person(key=DeliveryKey(7, 1), email="ada@bücher.example", name="Ada", fields={"city": "Bath"})
    eve = person(key=DeliveryKey(7, 2), email="ADA@xn--bcher-kva.example", name="Eve", fields={"city": "Wells"})
    reports = deliver(MAIL, [ada, eve])
    assert {report.key: report.result for report in reports} == dict.fromkeys((ada.key, eve.key), Result.ACCEPTED)
    tokens = {read_delivery(keyring(), Purpose.REPORT, one.token): one for one in service.arrived}
    assert set(tokens) == {ada.key, eve.key}
    for one in (ada, eve):
        check(MAIL, one, tokens[one.key], scheme)


def test_calls_are_as_large_as_the_service_takes_them_and_no_larger(
    deliver: Deliver, service: Service, scheme: str
) -> None:
    size = WIRES[scheme].people_a_call
    count = 2 * size + 1
    to = [person(key=DeliveryKey(7, i + 1), email=f"p{i}@mail.example") for i in range(count)]
    reports = deliver(personalizer(compiled("Hello {{ name }}")), to)
    assert len(reports) == len({report.key for report in reports}) == count
    assert len(service.calls) == 3
    assert {one.to for one in service.arrived} == {one.email for one in to}


def test_a_message_id_of_ours_is_kept_where_it_can_be(deliver: Deliver, service: Service, scheme: str) -> None:
    (to,) = people()[:1]
    deliver(MAIL, [to])
    if PROVIDERS[scheme].keeps_message_id:
        assert service.arrived[0].headers["Message-ID"] == by_smtp(MAIL, to)["Message-ID"]
