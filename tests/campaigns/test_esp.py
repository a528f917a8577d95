"""An ESP by Anymail: what Mailgun's API is sent, and what its answers come to."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

import pytest
from django.conf import LazySettings

from campaigns import delivering
from campaigns.models import Batch, Campaign, Delivery, DeliveryState
from newsletter import env
from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import Purpose, read_delivery
from newsletter.mailing.transports import transport_for
from subscribers.models import List, Subscriber
from tests.campaigns.test_delivering import _Patient
from tests.conftest import NOW

People = Callable[..., list[Subscriber]]
Drafts = Callable[..., Campaign]
pytestmark = pytest.mark.django_db(transaction=True)


@dataclass
class Provider:
    """A local server that speaks Mailgun's wire format. `answers` gives the reply to the calls in turn."""

    calls: list[dict[str, list[str]]] = field(default_factory=list)
    refuses: set[str] = field(default_factory=set)
    status: int = 200
    port: int = 0

    def answer(self, form: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        self.calls.append(form)
        if self.status != 200:
            return self.status, {"message": "not now"}
        if any(bad in to for to in form["to"] for bad in self.refuses):
            return 400, {"message": "'to' parameter is not a valid address"}
        return 200, {"id": f"<{len(self.calls)}@mailgun.example>", "message": "Queued. Thank you."}


@pytest.fixture
def provider(settings: LazySettings) -> Iterator[Provider]:
    provider = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            form: dict[str, list[str]] = {"path": [self.path], "authorization": [self.headers["Authorization"]]}
            content_type = self.headers["Content-Type"]
            if content_type.startswith("multipart/form-data"):
                for part in BytesParser(policy=HTTP).parsebytes(head + raw).iter_parts():
                    name = part.get_param("name", header="content-disposition")
                    form.setdefault(str(name), []).append(bytes(part.get_payload(decode=True)).decode())
            else:
                for name, value in parse_qsl(raw.decode()):
                    form.setdefault(name, []).append(value)
            status, body = provider.answer(form)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = env.email_url(f"mailgun://key-secret@mg.shed.example?api_url=http://127.0.0.1:{provider.port}/v3")
    settings.MAIL_TRANSPORT = url
    settings.ANYMAIL = env.anymail_settings(url)
    yield provider
    server.shutdown()
    server.server_close()


def send(campaign: Campaign, settings: LazySettings) -> delivering.Outcome | None:
    transport = transport_for(settings.MAIL_TRANSPORT)
    batch = Batch.objects.get(campaign=campaign)
    return delivering.send_batch(batch.pk, transport=_Patient(transport), worker="w", clock=lambda: NOW)


def states(campaign: Campaign) -> list[int]:
    rows = Delivery.objects.filter(campaign_id=campaign.pk).order_by("subscriber_id")
    return list(rows.values_list("state", flat=True))


def test_a_window_is_one_call_with_the_literals_once_and_the_slots_as_merge_data(
    garden: List, subscribe: People, launched: Drafts, provider: Provider, settings: LazySettings
) -> None:
    people = subscribe(garden, 30, name="Ada Green")
    campaign = launched()
    send(campaign, settings)
    assert states(campaign) == [DeliveryState.ACCEPTED] * 30
    (call,) = provider.calls
    assert call["path"] == ["/v3/mg.shed.example/messages"]
    assert len(call["to"]) == 30
    variables = json.loads(call["recipient-variables"][0])
    assert set(variables) == {person.email for person in people}
    html = call["html"][0]
    assert "It rains." in html
    assert "reader0@mail.example" not in html, "literals hold nobody's data"
    merged = html
    for name, value in variables[people[0].email].items():
        merged = merged.replace(f"%recipient.{name}%", value)
    assert "Hello Ada" in merged
    assert "%recipient." not in merged
    assert f"{settings.EDGE_URL}/o/" in merged
    assert call["o:tracking-opens"] == ["no"]
    assert call["o:tracking-clicks"] == ["no"]
    assert call["h:List-Unsubscribe-Post"] == ["List-Unsubscribe=One-Click"]
    assert call["h:List-Unsubscribe"] == ["<%recipient.u%>"]
    token = variables[people[3].email]["v:d"]
    assert read_delivery(keyring(), Purpose.REPORT, token) == (campaign.pk, people[3].pk)


def test_one_bad_address_of_many_is_found_by_halving_and_the_others_go_out(
    garden: List, subscribe: People, launched: Drafts, provider: Provider, settings: LazySettings
) -> None:
    people = subscribe(garden, 20)
    provider.refuses = {people[13].email}
    campaign = launched()
    send(campaign, settings)
    assert states(campaign) == [
        DeliveryState.FAILED if person is people[13] else DeliveryState.ACCEPTED for person in people
    ]
    mailed = [to for call in provider.calls for to in call["to"] if len(call["to"]) >= 1]
    assert len(mailed) > 20, "the refused calls asked for them too"
    assert len(provider.calls) <= 2 * 5 + 1


@pytest.mark.parametrize("status", [429, 500, 503, 401])
def test_an_answer_that_is_not_about_a_person_puts_all_off(
    garden: List, subscribe: People, launched: Drafts, provider: Provider, settings: LazySettings, status: int
) -> None:
    subscribe(garden, 3)
    provider.status = status
    campaign = launched()
    send(campaign, settings)
    assert states(campaign) == [DeliveryState.DEFERRED] * 3


def test_every_provider_name_of_email_url_leads_to_a_backend_that_exists() -> None:
    from django.utils.module_loading import import_string

    for scheme in env.ESP_BACKENDS:
        assert import_string(env.email_backend(env.email_url(f"{scheme}://key@domain.example")))


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("pigeon://x", "no mail service known here: pigeon"),
        ("nonsense", "look like"),
        ("smtp://h?connections=many", "connections"),
    ],
)
def test_an_unknown_mail_service_is_one_sentence(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        env.email_backend(env.email_url(url))
