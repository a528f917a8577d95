"""The first start on a server, by command and by page: who may, what is made, what is said when something is wrong."""

import json
import logging
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.test import Client

from newsletter.firstrun import founding
from subscribers.models import List, SenderIdentity
from tests.conftest import MailServer
from tests.newsletter.dns_server import serving

ANSWERS = {
    "owner_email": "ines@garden.example",
    "password": "leek-and-potato",
    "list_name": "The Leafmould Letter",
    "sender_email": "letter@garden.example",
    "postal_address": "12 Mill Lane, Hathersley",
}
OPTIONS = {
    "owner": "ines@garden.example",
    "list_name": "The Leafmould Letter",
    "sender": "letter@garden.example",
    "postal_address": "12 Mill Lane, Hathersley",
}


@pytest.fixture(autouse=True)
def _dns(settings: LazySettings) -> Iterator[None]:
    cache.clear()
    with serving({("garden.example", "TXT"): ['"v=spf1 mx ~all"'], ("garden.example", "MX"): ["10 mx.example."]}) as at:
        settings.DNS_SERVERS = [at]
        yield


@pytest.fixture(autouse=True)
def _quick(settings: LazySettings) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


def setup(**options: Any) -> dict[str, Any]:
    out = StringIO()
    call_command("setup", json=True, stdout=out, **{**OPTIONS, **options})
    made: dict[str, Any] = json.loads(out.getvalue())
    return made


def answers(**changes: str) -> dict[str, str]:
    return {**ANSWERS, "token": founding.setup_token(), **changes}


# The command ---------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_command_makes_owner_sender_and_list(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    monkeypatch.setenv("SETUP_PASSWORD", ANSWERS["password"])
    made = setup()
    assert (made["owner"], made["sender"], made["list"]) == (
        "ines@garden.example", "letter@garden.example", "the-leafmould-letter",
    )  # fmt: skip
    assert made["created"]
    assert "password" not in made
    assert {record["kind"]: record["standing"] for record in made["dns"]} == {
        "SPF": "ok", "DKIM": "unknown", "DMARC": "missing", "MX": "ok",
    }  # fmt: skip
    assert client.login(username="ines@garden.example", password=ANSWERS["password"])
    assert User.objects.get().is_superuser
    assert List.objects.get().sender.postal_address == "12 Mill Lane, Hathersley"


@pytest.mark.django_db
def test_the_same_answers_again_change_nothing() -> None:
    first = setup(skip_dns=True)
    hashed = User.objects.get().password
    second = setup(skip_dns=True)
    assert (first["created"], second["created"]) == (True, False)
    assert "password" not in second
    assert User.objects.get().password == hashed
    assert (List.objects.count(), SenderIdentity.objects.count()) == (1, 1)


@pytest.mark.django_db
def test_a_password_that_nobody_gave_is_made_up_and_shown(client: Client) -> None:
    made = setup(skip_dns=True)
    assert client.login(username="ines@garden.example", password=made["password"])


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"owner": ""}, "--owner"),
        ({"sender": ""}, "--from"),
        ({"owner": "ines"}, "@"),
        ({"sender": "a b@garden.example"}, "sign"),
        ({"slug": "two words"}, "short name"),
        ({"list_name": "x" * 121}, "120"),
    ],
)
def test_a_bad_answer_is_one_line_and_makes_nothing(changes: dict[str, str], words: str) -> None:
    with pytest.raises(CommandError) as refused:
        setup(**changes, skip_dns=True)
    assert refused.value.returncode == 2
    assert words in str(refused.value) or "address" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert (User.objects.count(), List.objects.count(), SenderIdentity.objects.count()) == (0, 0, 0)


@pytest.mark.django_db
def test_a_weak_password_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETUP_PASSWORD", "password")
    with pytest.raises(CommandError, match="too common"):
        setup(skip_dns=True)


@pytest.mark.django_db
def test_the_command_sends_a_test_mail(mail_server: MailServer) -> None:
    assert setup(skip_dns=True, test_mail="ines@garden.example")["test_mail"] == "ines@garden.example"
    assert mail_server.messages[0]["From"] == "The Leafmould Letter <letter@garden.example>"


@pytest.mark.django_db
def test_a_test_mail_that_does_not_leave_keeps_what_was_made(mail_server: MailServer) -> None:
    mail_server.answers["ines@garden.example"] = "550 5.7.1 not from you"
    made = setup(skip_dns=True, test_mail="ines@garden.example")
    assert made["test_mail_error"].endswith(": 550 5.7.1 not from you")
    assert made["password"]


# The page --------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_page_asks_and_the_log_holds_the_token(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        page = client.get("/setup/").content.decode()
    assert founding.setup_token() in caplog.text
    assert founding.setup_token() not in page
    assert "Postal address" in page


@pytest.mark.django_db
def test_the_page_makes_all_and_leads_on_to_the_domain(client: Client) -> None:
    response = client.post("/setup/", answers(), follow=True)
    assert response.redirect_chain[-1][0] == "/setup/domain/"
    page = response.content.decode()
    assert "v=DMARC1; p=none" in page
    assert List.objects.get().slug == "the-leafmould-letter"
    assert User.objects.get().is_superuser


@pytest.mark.django_db
def test_without_the_token_nothing_is_made(client: Client) -> None:
    for token in ("", "guess", founding.setup_token()[:-1]):
        response = client.post("/setup/", answers(token=token))
        assert response.status_code == 422
    assert not User.objects.exists()


@pytest.mark.django_db
def test_a_token_may_be_set(client: Client, settings: LazySettings) -> None:
    settings.SETUP_TOKEN = "Mulch and Marrow"
    assert client.post("/setup/", answers(token=" mulch and marrow ")).status_code == 302


@pytest.mark.django_db
def test_guessing_ends_after_some_tries(client: Client) -> None:
    for _ in range(20):
        client.post("/setup/", answers(token="guess"))
    assert "Too many tries" in client.post("/setup/", answers()).content.decode()
    assert not User.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("owner_email", "nobody"), ("password", "12345678"), ("list_name", ""), ("sender_email", "x@"),
        ("postal_address", "  "), ("list_name", "x" * 200),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_makes_nothing(client: Client, name: str, value: str) -> None:
    response = client.post("/setup/", answers(**{name: value}))
    assert response.status_code == 422
    assert "errorlist" in response.content.decode()
    assert ANSWERS["password"] not in response.content.decode()
    assert (User.objects.count(), List.objects.count(), SenderIdentity.objects.count()) == (0, 0, 0)


@pytest.mark.django_db
def test_once_there_is_an_owner_the_page_is_gone(client: Client, admin_user: User) -> None:
    assert client.get("/setup/").status_code == 404
    assert client.post("/setup/", answers()).status_code == 404
    with pytest.raises(founding.AlreadyFounded):
        founding.found(founding.Answers(**ANSWERS), only_once=True)
    assert User.objects.count() == 1


@pytest.mark.django_db
def test_a_foreign_site_cannot_post(settings: LazySettings) -> None:
    assert Client(enforce_csrf_checks=True).post("/setup/", answers()).status_code == 403


# The domain ------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_domain_page_is_for_staff(client: Client) -> None:
    User.objects.create_user("reader", "reader@garden.example", "x")
    assert client.get("/setup/domain/").status_code == 302
    client.force_login(User.objects.get())
    assert client.get("/setup/domain/").status_code == 302


@pytest.mark.django_db
def test_the_domain_is_checked_again_on_request(admin_client: Client, settings: LazySettings) -> None:
    sender = SenderIdentity.objects.create(name="Letter", email="letter@garden.example", postal_address="x")
    assert "missing" in admin_client.get("/setup/domain/").content.decode()
    with serving({("_dmarc.garden.example", "TXT"): ['"v=DMARC1; p=reject"']}) as address:
        settings.DNS_SERVERS = [address]
        response = admin_client.post("/setup/domain/", {"sender": sender.pk, "selector": "S1 "}, follow=True)
    page = response.content.decode()
    assert "v=DMARC1; p=reject" in page
    assert "s1._domainkey.garden.example" in page


@pytest.mark.django_db
def test_a_test_mail_goes_to_whoever_asks(admin_client: Client, mail_server: MailServer) -> None:
    SenderIdentity.objects.create(name="Büro, Garten", email="letter@garden.example", postal_address="x")
    page = admin_client.post("/setup/domain/", {"test": "1"}, follow=True).content.decode()
    assert "admin@shed.example" in page
    assert mail_server.recipients == ["admin@shed.example"]
    assert mail_server.messages[0]["From"].addresses[0].display_name == "Büro, Garten"


@pytest.mark.django_db
def test_a_refused_test_mail_is_explained(admin_client: Client, mail_server: MailServer) -> None:
    SenderIdentity.objects.create(name="Letter", email="letter@garden.example", postal_address="x")
    mail_server.answers["admin@shed.example"] = "550 5.7.1 no SPF"
    page = admin_client.post("/setup/domain/", {"test": "1"}, follow=True).content.decode()
    assert "did not take it" in page
    bad = admin_client.post("/setup/domain/", {"test": "1", "to": "nobody"}, follow=True)
    assert bad.status_code == 200


@pytest.mark.django_db
@pytest.mark.parametrize("sender", ["0", "999", "x", "1e9", "²", "9" * 40])
def test_an_unknown_sender_is_not_found(admin_client: Client, sender: str) -> None:
    assert admin_client.get("/setup/domain/", {"sender": sender}).status_code == 404


@pytest.mark.django_db
def test_without_any_sender_the_page_says_so(admin_client: Client) -> None:
    assert "There is no sender yet" in admin_client.get("/setup/domain/").content.decode()
