"""What the public pages answer to the curious, the forged and the many."""

from datetime import timedelta

import pytest
from django.test import Client

from newsletter import ratelimit
from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import DeliveryKey, confirmation_token, delivery_tokens
from subscribers import views
from subscribers.models import List, Subscriber, Subscription
from tests.conftest import NOW
from tests.subscribers.conftest import Reader

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _fresh_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.core.cache import cache

    cache.clear()


def test_pages_by_token_are_not_passed_on_indexed_or_kept(browser_client: Client, reader: Reader) -> None:
    for path in (f"/u/{reader.token}", f"/p/{reader.token}", "/confirm/nonsense"):
        page = browser_client.get(path)
        assert page["Referrer-Policy"] == "no-referrer"
        assert "noindex" in page["X-Robots-Tag"]
        assert "no-store" in page["Cache-Control"]
        assert "frame-ancestors 'none'" in page["Content-Security-Policy"]
        assert not page.cookies


def test_forged_cut_and_foreign_tokens_get_a_friendly_404(browser_client: Client, reader: Reader) -> None:
    good = reader.token
    tokens = delivery_tokens(keyring(), DeliveryKey(reader.campaign.pk, reader.subscriber.pk))
    bad = [
        good[:-1],
        good[:10],
        good + "A",
        good[:-1] + ("A" if good[-1] != "A" else "B"),
        ("B" if good[0] != "B" else "C") + good[1:],
        tokens.track,
        tokens.return_path,
        confirmation_token(keyring(), reader.subscription.pk, NOW),
        "x" * 5000,
        "ünïcode",
        "%00",
        "..",
    ]
    for token in bad:
        for place in ("u", "p", "confirm"):
            for answer in (browser_client.get(f"/{place}/{token}"), browser_client.post(f"/{place}/{token}")):
                assert answer.status_code == 404, (place, token)
                assert b"<h1>" in answer.content
    assert reader.state == "active"


def test_an_unknown_list_and_an_unknown_page_are_404_in_the_sites_look(browser_client: Client) -> None:
    for path in ("/subscribe/nothing/", "/nothing"):
        page = browser_client.get(path)
        assert page.status_code == 404
        assert b"There is nothing here" in page.content


def test_known_and_unknown_addresses_get_the_same_answer(browser_client: Client, garden: List, reader: Reader) -> None:
    known = browser_client.post("/subscribe/garden/", {"email": "ann@mail.example"})
    unknown = browser_client.post("/subscribe/garden/", {"email": "new@mail.example"})
    assert known.status_code == unknown.status_code == 200
    assert known.content.replace(b"ann@", b"new@") == unknown.content


def test_a_program_that_fills_every_field_gets_the_same_answer_and_nothing_else(
    browser_client: Client, garden: List
) -> None:
    page = browser_client.post("/subscribe/garden/", {"email": "bot@mail.example", "topic": "x"})
    assert b"Please check your inbox" in page.content
    assert not Subscriber.objects.exists()


def test_a_wrong_address_is_said_at_its_field_and_kept(browser_client: Client, garden: List) -> None:
    page = browser_client.post("/subscribe/garden/", {"email": "bea@", "name": "Bea"})
    assert page.status_code == 422
    text = page.content.decode()
    assert 'value="bea@"' in text
    assert 'value="Bea"' in text
    assert 'aria-invalid="true"' in text
    assert "after the @-sign" in text


def test_one_network_cannot_sign_up_without_end(
    browser_client: Client, garden: List, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "SIGN_UPS_PER_HOUR", 3)
    statuses = [
        browser_client.post("/subscribe/garden/", {"email": f"a{i}@mail.example"}).status_code for i in range(5)
    ]
    assert statuses == [200, 200, 200, 429, 429]
    assert Subscription.objects.count() == 3
    other = browser_client.post("/subscribe/garden/", {"email": "b@mail.example"}, REMOTE_ADDR="198.51.100.7")
    assert other.status_code == 200


def test_the_home_page_names_the_public_lists_only(browser_client: Client, garden: List) -> None:
    List.objects.create(slug="staff", name="Staff only", sender=garden.sender, is_public=False)
    page = browser_client.get("/").content.decode()
    assert "The Potting Shed" in page
    assert "Staff only" not in page


def test_the_page_for_a_broken_server_needs_no_database() -> None:
    from django.template.loader import get_template

    page = get_template("500.html").render()
    assert "Something broke on our side" in page
    assert "public/public.css" in page


@pytest.mark.parametrize(
    ("proxies", "forwarded", "client"),
    [
        (0, "6.6.6.6", "10.0.0.1"),
        (1, "", "10.0.0.1"),
        (1, "6.6.6.6, 203.0.113.9", "203.0.113.9"),
        (2, "6.6.6.6, 203.0.113.9, 10.1.1.1", "203.0.113.9"),
        (1, "no address", ""),
    ],
)
def test_only_trusted_proxies_are_believed(settings, rf, proxies: int, forwarded: str, client: str) -> None:  # type: ignore[no-untyped-def]
    settings.TRUSTED_PROXIES = proxies
    request = rf.get("/", REMOTE_ADDR="10.0.0.1", HTTP_X_FORWARDED_FOR=forwarded)
    assert ratelimit.client_address(request) == client


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.77", "203.0.113.0/24"),
        ("2001:db8:1:2::3", "2001:db8:1::/48"),
        ("::ffff:203.0.113.77", "203.0.113.0/24"),
        ("", ""),
    ],
)
def test_a_network_names_no_household(address: str, network: str) -> None:
    assert ratelimit.network(address) == network


def test_a_counter_ends_with_its_window() -> None:
    def allowed(seconds: int) -> bool:
        moment = NOW.replace(minute=0) + timedelta(seconds=seconds)
        return ratelimit.allow("test", "me", limit=2, seconds=60, now=moment)

    assert [allowed(0), allowed(1), allowed(2), allowed(60)] == [True, True, False, True]
