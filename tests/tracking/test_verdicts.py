"""The table of verdicts: what a fetch proves (HYGIENE, "What an open and a click prove")."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracking import models
from tracking.verdicts import Hit, Verdict, client_class, judge, network_class

START = datetime(2026, 3, 5, 9, 0, tzinfo=UTC)
CHROME = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0"
GMAIL = "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)"
YAHOO = "YahooMailProxy; https://help.yahoo.com/kb/yahoo-mail-proxy-SLN28749.html"
APPLE_MAIL = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko)"
OUTLOOK = "Mozilla/4.0 (compatible; MSIE 7.0; Windows NT 10.0; WOW64; Trident/7.0; ms-office; MSOffice 16)"


def hit(
    kind: str = "open",
    *,
    after: float = 0,
    user_agent: str | None = CHROME,
    ip: str = "192.0.2.1",
    link: int | None = None,
    method: str = "GET",
    flags: frozenset[str] = frozenset(),
) -> Hit:
    at = START + timedelta(seconds=after)
    return Hit("click" if kind == "click" else "open", at, method, user_agent, ip, link, after, flags)


def verdicts(*hits: Hit) -> list[Verdict]:
    return [judgement.verdict for judgement in judge(hits)]


@pytest.mark.parametrize("user_agent", [CHROME, FIREFOX, GMAIL, YAHOO, APPLE_MAIL, OUTLOOK, None])
def test_a_client_that_displays_images_is_a_person(user_agent: str | None) -> None:
    assert verdicts(hit(user_agent=user_agent)) == [Verdict.HUMAN]


@pytest.mark.parametrize(
    ("user_agent", "reason"),
    [
        ("Mozilla/5.0", "apple-privacy"),
        ("", "no-client-name"),
        ("curl/8.5.0", "http-library"),
        ("python-requests/2.32", "http-library"),
        ("Wget/1.21", "http-library"),
        ("Go-http-client/2.0", "http-library"),
        ("Mozilla/5.0 (compatible; Barracuda Sentinel)", "security-scanner"),
        ("Mozilla/5.0 (X11) AppleWebKit/537.36 HeadlessChrome/126.0 Safari/537.36", "headless-browser"),
        ("Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)", "link-preview"),
        ("Mozilla/5.0 (compatible; bingbot/2.0)", "self-named-bot"),
    ],
)  # fmt: skip
def test_a_client_that_is_no_person_says_why(user_agent: str, reason: str) -> None:
    [judgement] = judge([hit(user_agent=user_agent)])
    assert judgement.verdict is Verdict.MACHINE
    assert reason in judgement.reasons


def test_a_phone_called_cubot_is_not_a_bot() -> None:
    phone = "Mozilla/5.0 (Linux; Android 11; CUBOT NOTE 20) AppleWebKit/537.36 Chrome/126.0 Mobile Safari/537.36"
    assert verdicts(hit(user_agent=phone)) == [Verdict.HUMAN]


def test_one_click_is_a_person_however_fast() -> None:
    assert verdicts(hit("click", link=1, after=1)) == [Verdict.HUMAN]
    assert verdicts(hit("click", link=1), hit("click", link=1, after=0.2)) == [Verdict.HUMAN, Verdict.HUMAN]


def test_links_followed_within_a_second_are_a_scanner() -> None:
    burst = [hit("click", link=link, after=43 + link / 10) for link in range(9)]
    assert set(verdicts(*burst)) == {Verdict.MACHINE}


def test_a_scanner_s_neighbours_are_machines_and_the_reader_behind_it_is_not() -> None:
    scanner = [hit("click", link=link, after=link / 10, ip="198.51.100.7") for link in range(5)]
    its_pixel = hit(after=4, ip="198.51.100.7", user_agent=FIREFOX)
    its_last = hit("click", link=0, after=9, ip="198.51.100.7", user_agent=FIREFOX)
    gmail = hit(after=3, ip="66.249.0.1", user_agent=GMAIL)
    reader = hit("click", link=2, after=300)
    found = verdicts(*scanner, its_pixel, its_last, gmail, reader)
    assert found == [Verdict.MACHINE] * 7 + [Verdict.HUMAN] * 2


def test_a_person_reads_on_between_links() -> None:
    assert set(verdicts(*(hit("click", link=link, after=link * 6) for link in range(6)))) == {Verdict.HUMAN}


def test_head_is_a_machine_and_so_is_what_follows_it() -> None:
    found = verdicts(hit("click", link=1, method="HEAD"), hit("click", link=1, after=1), hit("click", link=1, after=60))
    assert found == [Verdict.MACHINE, Verdict.MACHINE, Verdict.HUMAN]


@pytest.mark.parametrize(
    ("flag", "verdict"),
    [("machine", Verdict.MACHINE), ("apple", Verdict.MACHINE), ("image-proxy", Verdict.HUMAN)],
)
def test_a_provider_s_word_counts(flag: str, verdict: Verdict) -> None:
    assert verdicts(hit(user_agent=None, ip="", flags=frozenset({flag}))) == [verdict]


def test_classes_fit_their_columns_and_name_no_address() -> None:
    assert client_class(CHROME) == "browser:chrome-windows"
    assert client_class(APPLE_MAIL) == "app:apple-mail-mac"
    assert client_class(None) == ""
    assert [network_class(ip) for ip in ("10.1.2.3", "8.8.8.8", "2a00:1450::1", "")] == ["private", "ipv4", "ipv6", ""]


def test_the_stored_verdicts_are_the_pure_ones() -> None:
    assert {one.name: one.value for one in Verdict} == {one.name: one.value for one in models.Verdict}


@given(
    st.lists(
        st.builds(
            hit,
            st.sampled_from(["open", "click"]),
            after=st.floats(0, 10_000),
            user_agent=st.one_of(st.none(), st.text(max_size=60), st.sampled_from([CHROME, GMAIL, "Mozilla/5.0"])),
            ip=st.sampled_from(["", "192.0.2.1", "2001:db8::1", "nonsense"]),
            link=st.one_of(st.none(), st.integers(0, 9)),
            method=st.sampled_from(["GET", "HEAD"]),
        ),
        max_size=12,
    )
)
def test_every_event_is_judged_with_a_reason_and_order_does_not_matter(hits: list[Hit]) -> None:
    judged = judge(hits)
    assert all(
        one.reasons and len(client_class(event.user_agent)) <= 32 for one, event in zip(judged, hits, strict=True)
    )
    assert [one.verdict for one in judge(hits[::-1])][::-1] == [one.verdict for one in judged]


def test_a_headless_browser_on_this_machine_is_somebody_trying_it_out() -> None:
    headless = CHROME.replace("Chrome/", "HeadlessChrome/")
    assert verdicts(hit(user_agent=headless, ip="127.0.0.1")) == [Verdict.HUMAN]
    assert verdicts(hit(user_agent=headless)) == [Verdict.MACHINE]
