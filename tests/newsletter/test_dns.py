"""What is said about a sender's domain, asked of a real DNS server on loopback."""

import socket
import time

import pytest
from django.core.cache import cache
from pytest_django.fixtures import Settings

from newsletter.dns import Record, Standing, check_domain, check_with, lookup_with, resolver
from newsletter.mailing.signing import EVERY_DOMAIN, Keys, load_key, make_key
from tests.newsletter.dns_server import SERVFAIL, Zone, serving

GOOD: Zone = {
    ("garden.example", "TXT"): ['"site-check=1"', '"v=spf1 include:mailgun.org ~all"'],
    ("garden.example", "MX"): ["10 mail.garden.example."],
    ("mailo._domainkey.garden.example", "TXT"): ['"v=DKIM1; k=rsa; " "p=MIGfMA0GCSq"'],
    ("_dmarc.garden.example", "TXT"): ['"v=DMARC1; p=none"'],
}


@pytest.fixture(autouse=True)
def _forgetful() -> None:
    cache.clear()


def check(settings: Settings, zone: Zone, *, domain: str = "garden.example", **how: str) -> dict[str, Record]:
    with serving(zone) as address:
        settings.DNS_SERVERS = [address]
        records = check_domain(domain, transport=how.pop("transport", "mailgun"), **how)  # type: ignore[arg-type]
    return {record.kind: record for record in records}


def test_a_domain_in_order_is_all_well(settings: Settings) -> None:
    records = check(settings, GOOD)
    assert [record.standing for record in records.values()] == [Standing.OK] * 4
    assert records["DKIM"].found == ("v=DKIM1; k=rsa; p=MIGfMA0GCSq",)


def test_an_empty_domain_is_told_what_to_publish(settings: Settings) -> None:
    records = check(settings, {("garden.example", "A"): []})
    assert {record.standing for record in records.values()} == {Standing.MISSING}
    assert records["SPF"].publish == "v=spf1 include:mailgun.org ~all"
    assert records["DMARC"].host == "_dmarc.garden.example"
    assert records["DKIM"].host == "mailo._domainkey.garden.example"


@pytest.mark.parametrize(
    ("kind", "name", "texts", "word"),
    [
        ("SPF", "garden.example", ['"v=spf1 include:other.example ~all"'], "include:mailgun.org"),
        ("SPF", "garden.example", ['"v=spf1 mx ~all"', '"v=spf1 a ~all"'], "several"),
        ("SPF", "garden.example", ['"v=spf1 include:mailgun.org +all"'], "anybody"),
        ("DMARC", "_dmarc.garden.example", ['"v=DMARC1; rua=mailto:x@garden.example"'], "policy"),
        ("DKIM", "mailo._domainkey.garden.example", ['"v=DKIM1; p="'], "withdrawn"),
    ],
)
def test_a_record_that_does_not_hold_is_explained(
    settings: Settings, kind: str, name: str, texts: list[str], word: str
) -> None:
    record = check(settings, {**GOOD, (name, "TXT"): texts})[kind]
    assert record.standing is Standing.WRONG
    assert word in record.message


def test_a_null_mx_loses_replies(settings: Settings) -> None:
    assert check(settings, {**GOOD, ("garden.example", "MX"): ["0 ."]})["MX"].standing is Standing.WRONG


def test_a_subdomain_stands_under_its_parents_policy(settings: Settings) -> None:
    record = check(settings, GOOD, domain="news.garden.example")["DMARC"]
    assert record.is_fine
    assert record.host == "_dmarc.garden.example"


def test_an_international_domain_is_asked_for_by_its_a_labels(settings: Settings) -> None:
    zone = {("xn--grten-gra.example", "TXT"): ['"v=spf1 include:mailgun.org -all"']}
    assert check(settings, zone, domain="Gärten.example")["SPF"].is_fine


def test_a_relay_of_ones_own_needs_no_particular_word(settings: Settings) -> None:
    zone = {**GOOD, ("garden.example", "TXT"): ['"v=spf1 ip4:192.0.2.7 -all"']}
    assert check(settings, zone, transport="smtp", smtp_host="relay.example", selector="mailo")["SPF"].is_fine


def test_each_of_several_relays_is_named_in_what_to_publish(settings: Settings) -> None:
    zone: Zone = {("garden.example", "A"): []}
    record = check(settings, zone, transport="smtp", smtp_host="one.example 192.0.2.7 2001:db8::1 one.example")["SPF"]
    assert record.publish == "v=spf1 a:one.example ip4:192.0.2.7 ip6:2001:db8::1 ~all"


def test_without_a_selector_dkim_is_unknown_not_missing(settings: Settings) -> None:
    assert check(settings, GOOD, transport="smtp")["DKIM"].standing is Standing.UNKNOWN


def test_a_broken_dns_is_not_a_failure_of_the_domain(settings: Settings) -> None:
    record = check(settings, {**GOOD, ("garden.example", "TXT"): [SERVFAIL]})["SPF"]
    assert record.standing is Standing.UNKNOWN


def test_a_silent_dns_is_given_up_in_time(settings: Settings) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        settings.DNS_SERVERS = [f"127.0.0.1:{silent.getsockname()[1]}"]
        begun = time.monotonic()
        lookup = lookup_with(resolver(), seconds=0.2)
        records = check_with(lookup, "garden.example", selector="", transport="mailgun", smtp_host="")
    assert {record.standing for record in records} == {Standing.UNKNOWN}
    assert time.monotonic() - begun < 1, "one question after the other would take a service's selectors times as long"


def test_an_answer_is_remembered_until_asked_again(settings: Settings) -> None:
    check(settings, GOOD)
    settings.DNS_SERVERS = ["127.0.0.1:9"]
    assert all(record.is_fine for record in check_domain("garden.example", transport="mailgun"))
    again = check_domain("garden.example", transport="mailgun", refresh=True)
    assert {record.standing for record in again} == {Standing.UNKNOWN}


def test_the_key_that_we_sign_with_is_compared_with_the_published_one(settings: Settings) -> None:
    settings.DKIM_SELECTOR = "mailo"
    settings.DKIM_KEYS = Keys("mailo", {EVERY_DOMAIN: load_key(make_key(), named="a test's")})
    ours = settings.DKIM_KEYS.record("garden.example")
    record = check(settings, GOOD, transport="smtp")["DKIM"]
    assert record.standing is Standing.WRONG
    assert "Another key" in record.message
    assert record.publish == ours
    missing = {key: texts for key, texts in GOOD.items() if "_domainkey" not in key[0]}
    cache.clear()
    assert check(settings, missing, transport="smtp")["DKIM"].publish == ours
    pieces = " ".join(f'"{ours[at : at + 200]}"' for at in range(0, len(ours), 200))
    published = {**GOOD, ("mailo._domainkey.garden.example", "TXT"): [pieces]}
    cache.clear()
    assert check(settings, published, transport="smtp")["DKIM"].is_fine
    # An e-mail service signs by its own key, whatever lies here.
    cache.clear()
    assert check(settings, GOOD)["DKIM"].is_fine
