"""A campaign by an ESP: what the ledger says after each kind of answer, and what EMAIL_URL may be."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from django.conf import LazySettings
from django.utils.module_loading import import_string

from campaigns import delivering, freezing
from campaigns.models import Batch, Campaign, Delivery, DeliveryError, DeliveryState
from newsletter import env
from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import Purpose, read_delivery
from newsletter.mailing.transports import transport_for
from newsletter.mailing.transports.providers import LIST_HEADERS, PROVIDERS, Way
from subscribers.models import List, Subscriber
from tests.campaigns.conftest import Patient
from tests.conftest import NOW
from tests.newsletter.mailing.esp_services import WIRES, Service, form_of, running

People = Callable[..., list[Subscriber]]
Drafts = Callable[..., Campaign]
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def one_batch_a_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezing, "LEAST_IN_A_BATCH", 1_000)


@pytest.fixture
def service(settings: LazySettings) -> Iterator[Service]:
    """A local Mailgun, and settings that lead to it."""
    with running(Service(WIRES["mailgun"].take)) as service:
        url = env.email_url(WIRES["mailgun"].url.format(f"http://127.0.0.1:{service.port}"))
        settings.MAIL_TRANSPORT, settings.ANYMAIL = url, env.anymail_settings(url)
        yield service


def send(campaign: Campaign, settings: LazySettings) -> delivering.Outcome | None:
    transport = transport_for(settings.MAIL_TRANSPORT)
    batch = Batch.objects.get(campaign=campaign)
    try:
        return delivering.send_batch(batch.pk, transport=Patient(transport), worker="w", clock=lambda: NOW)
    finally:
        transport.close()


def states(campaign: Campaign) -> list[int]:
    rows = Delivery.objects.filter(campaign_id=campaign.pk).order_by("subscriber_id")
    return list(rows.values_list("state", flat=True))


def test_calls_are_larger_than_a_window_of_the_ledger(
    garden: List, subscribe: People, launched: Drafts, service: Service, settings: LazySettings
) -> None:
    people = subscribe(garden, 450, name="Ada Green")
    campaign = launched()
    outcome = send(campaign, settings)
    assert outcome
    assert outcome.is_finished
    assert states(campaign) == [DeliveryState.ACCEPTED] * 450
    assert sorted(len(form_of(call)["to"]) for call in service.calls) == [50, 200, 200]
    tokens = {one.to: read_delivery(keyring(), Purpose.REPORT, one.token) for one in service.arrived}
    assert tokens == {person.email: (campaign.pk, person.pk) for person in people}
    (html,) = form_of(service.calls[0])["html"]
    assert "It rains." in html
    assert "reader0@mail.example" not in html, "literals hold nobody's data"
    assert "Hello Ada" in service.arrived[0].html
    assert f"{settings.EDGE_URL}/o/" in service.arrived[0].html


def test_one_bad_address_of_many_is_found_and_the_editor_sees_why(
    garden: List, subscribe: People, launched: Drafts, service: Service, settings: LazySettings
) -> None:
    people = subscribe(garden, 20)
    service.refuses = {people[13].email}
    campaign = launched()
    send(campaign, settings)
    assert states(campaign) == [
        DeliveryState.FAILED if person is people[13] else DeliveryState.ACCEPTED for person in people
    ]
    assert len(service.calls) <= 2 * 5 + 1
    error = DeliveryError.objects.get()
    assert (error.subscriber_id, error.is_permanent) == (people[13].pk, True)
    assert "not a valid address" in error.text


@pytest.mark.parametrize("status", [429, 500, 503, 401])
def test_an_answer_that_is_not_about_a_person_puts_the_batch_off_as_a_whole(
    garden: List, subscribe: People, launched: Drafts, service: Service, settings: LazySettings, status: int
) -> None:
    subscribe(garden, 3)
    service.answers = [(status, {"Retry-After": "300"}, {"message": "not now"})]
    campaign = launched()
    send(campaign, settings)
    assert states(campaign) == [DeliveryState.QUEUED] * 3
    assert set(Delivery.objects.values_list("attempts", flat=True)) == {0}
    batch = Batch.objects.get()
    assert batch.state == Batch.State.READY
    assert batch.not_before == NOW + timedelta(seconds=300)


def test_a_call_without_an_answer_leaves_its_people_unknown_and_nobody_else(
    garden: List, subscribe: People, launched: Drafts, service: Service, settings: LazySettings
) -> None:
    subscribe(garden, 260)
    settings.MAIL_TRANSPORT = env.email_url(
        f"{WIRES['mailgun'].url.format(f'http://127.0.0.1:{service.port}')}&connections=1"
    )
    service.answers = [None]
    campaign = launched()
    send(campaign, settings)
    assert states(campaign) == [DeliveryState.UNKNOWN] * 200 + [DeliveryState.QUEUED] * 60
    assert threading.active_count() < 10


def test_every_service_of_anymail_can_be_chosen_and_has_a_row() -> None:
    assert set(env.ESP_BACKENDS) == set(PROVIDERS)
    for scheme, esp in env.ESP_BACKENDS.items():
        url = env.email_url(esp.example)
        assert url.scheme == scheme
        assert env.missing_from(url) == ""
        assert import_string(env.email_backend(url))
        assert issubclass(import_string(PROVIDERS[scheme].backend), import_string(env.email_backend(url)))


def test_the_operators_table_says_what_the_code_does(settings: LazySettings) -> None:
    text = (settings.BASE_DIR / "docs" / "mail-services.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "`" in line]
    table = {row[0]: row for row in rows if len(row) == 7 and row[0] != "service"}
    assert set(table) == {provider.name for provider in PROVIDERS.values()}
    for scheme, provider in PROVIDERS.items():
        _, address, way, people, repeats, headers, counting = table[provider.name]
        assert address.strip("`").startswith(f"{scheme}://")
        assert {Way.MERGE: "merged", Way.OWN: "a batch", Way.ONE: "one by one"}[provider.way] in way
        assert int(people.split(" ")[0].replace(",", "")) == provider.people_a_call
        if provider.people_a_call != provider.limit:
            assert f"(of {provider.limit:,})" in people
        assert (provider.key_header or "no") in repeats
        assert headers.startswith("all") == (provider.headers == LIST_HEADERS)
        assert (counting == "off") == provider.sets_tracking


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("pigeon://x", "no mail service known here: pigeon"),
        ("nonsense", "look like"),
        ("smtp://h?connections=many", "connections"),
        ("mailgun://key@domain.example?connections=0", "connections"),
        ("mailgun://key@domain.example?api_ulr=https://api.eu.mailgun.net/v3", "unknown here: api_ulr .known: api_url"),
        ("ses://?api_url=http://x", "unknown here: api_url"),
    ],
)
def test_an_unknown_mail_service_is_one_sentence(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        env.email_backend(env.email_url(url))


@pytest.mark.parametrize(
    ("url", "missing"),
    [
        ("mailgun://key@", "sending domain"),
        ("mailjet://key@", "secret key"),
        ("scaleway://key@", "project_id"),
        ("postal://key@", "api_url"),
        ("unisender-go://key@", "api_url"),
        ("resend://", "key"),
        ("ses://key@", "secret key"),
        ("ses://", ""),
        ("smtp://mail.example", ""),
    ],
)
def test_what_an_address_lacks_has_a_name(url: str, missing: str) -> None:
    assert env.missing_from(env.email_url(url)) == missing


def test_options_become_anymails_settings_and_amazon_repeats_nothing_by_itself() -> None:
    url = env.email_url("sendgrid://key@?connections=3&generate_message_id=false")
    assert env.anymail_settings(url) == {
        "SENDGRID_API_KEY": "key",
        "SENDGRID_GENERATE_MESSAGE_ID": False,
    }
    amazon = env.anymail_settings(env.email_url("ses://a:b%2Fc@?region=eu-west-1&configuration_set_name=news"))
    client = amazon["AMAZON_SES_CLIENT_PARAMS"]
    assert isinstance(client, dict)
    assert client["aws_secret_access_key"] == "b/c"
    assert client["config"]["retries"] == {"total_max_attempts": 1}
    assert amazon["AMAZON_SES_CONFIGURATION_SET_NAME"] == "news"
