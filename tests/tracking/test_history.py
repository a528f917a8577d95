"""History from another platform becomes ledger, events, figures and bits, once."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from campaigns.models import Campaign, CampaignFigures, Delivery, DeliveryState, Link, Outcome
from subscribers import engagement
from subscribers.hygiene import policies
from subscribers.models import Engagement, List, Subscription
from subscribers.suppressing import is_suppressed
from tests.subscribers.hygiene.building import make_list, subscribe
from tracking import history
from tracking.history import Counts
from tracking.models import Event, Verdict

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 1, 1, tzinfo=UTC)
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
APPLE = "Mozilla/5.0"


def week(number: int) -> datetime:
    return datetime(2025, 1, 3, 8, tzinfo=UTC) + timedelta(weeks=number - 1)


def line(kind: str, name: str, number: int, *, after: timedelta = timedelta(0), **more: str) -> dict[str, Any]:
    at = (week(number) + after).isoformat()
    return {"type": kind, "email": f"{name}@example.org", "campaign": f"2025-w{number:02}", "at": at, **more}


def sent(name: str, *numbers: int) -> list[dict[str, Any]]:
    return [line("sent", name, number) for number in numbers]


def opened(name: str, *numbers: int, user_agent: str = FIREFOX) -> list[dict[str, Any]]:
    return [line("open", name, number, after=timedelta(hours=2), user_agent=user_agent) for number in numbers]


def bring_in(to: List, lines: Iterable[dict[str, Any]], tmp_path: Path) -> Counts:
    file = BytesIO("\n".join(map(json.dumps, lines)).encode())
    return history.import_history(file, to=to, report=tmp_path / "refused.csv", now=NOW)


@pytest.fixture
def weekly() -> List:
    return make_list()


def bits(subscription: Subscription) -> tuple[str, str]:
    found = Engagement.objects.get(pk=subscription.pk)
    return found.delivered, found.engaged


def test_a_history_in_any_order_becomes_campaigns_deliveries_and_bits(weekly: List, tmp_path: Path) -> None:
    ann, ben = subscribe(weekly, "ann", "ben", since=NOW)
    lines = [*sent("ann", 1, 2, 3), *sent("ben", 2, 3), *opened("ann", 2)]
    lines.append(line("click", "ann", 3, after=timedelta(hours=3), url="https://example.org/a", user_agent=FIREFOX))
    assert bring_in(weekly, reversed(lines), tmp_path) == Counts(7, 0, 0)
    campaigns = Campaign.objects.order_by("number")
    assert [(c.number, c.external_key, c.state, c.origin, c.audience) for c in campaigns] == [
        (1, "2025-w01", "sent", "imported", 1),
        (2, "2025-w02", "sent", "imported", 2),
        (3, "2025-w03", "sent", "imported", 2),
    ]
    assert (bits(ann), bits(ben)) == (("111", "011"), ("011", "000"))
    delivery = Delivery.objects.get(campaign_id=campaigns[2].pk, subscriber_id=ann.subscriber_id)
    assert (delivery.state, delivery.outcome, delivery.seen) == (DeliveryState.ACCEPTED, Outcome.DELIVERED, 2)
    assert delivery.clicked_at == week(3) + timedelta(hours=3)
    figures = CampaignFigures.objects.get(pk=campaigns[1].pk)
    assert (figures.opens_raw, figures.opens_human, figures.open_hits) == (1, 1, 1)
    assert Link.objects.get().url == "https://example.org/a"
    weekly.refresh_from_db()
    assert weekly.issues == 3


def test_importing_twice_finds_duplicates_only(weekly: List, tmp_path: Path) -> None:
    (ann,) = subscribe(weekly, "ann")
    click = line("click", "ann", 1, url="https://example.org/a")
    lines = [*sent("ann", 1, 2), *opened("ann", 1), click, {**click, "url": "https://example.org/b"}]
    lines.append(line("bounce", "ann", 2, status="5.1.1"))
    assert bring_in(weekly, [*lines, click], tmp_path) == Counts(6, 1, 0)
    before = (bits(ann), list(Event.objects.values()), list(CampaignFigures.objects.order_by("pk").values()))
    assert bring_in(weekly, lines, tmp_path) == Counts(0, 6, 0)
    assert (bits(ann), list(Event.objects.values()), list(CampaignFigures.objects.order_by("pk").values())) == before


def test_machines_are_told_apart_and_set_no_bit(weekly: List, tmp_path: Path) -> None:
    apple, scanned = subscribe(weekly, "apple", "scanned")
    burst = [
        line("click", "scanned", 1, after=timedelta(seconds=40, milliseconds=100 * n), url=f"https://example.org/{n}")
        for n in range(8)
    ]
    bring_in(weekly, [*sent("apple", 1), *sent("scanned", 1), *opened("apple", 1, user_agent=APPLE), *burst], tmp_path)
    assert (bits(apple), bits(scanned)) == (("1", "0"), ("1", "0"))
    assert set(Event.objects.values_list("verdict", flat=True)) == {Verdict.MACHINE}
    figures = CampaignFigures.objects.get()
    assert (figures.opens_raw, figures.opens_human, figures.clicks_raw, figures.clicks_human) == (1, 0, 1, 0)


def test_a_dead_address_is_suppressed_unless_it_has_taken_mail_since(weekly: List, tmp_path: Path) -> None:
    subscribe(weekly, "ann", "ben", "cid", since=NOW)
    bounced = [line("bounce", "ann", 2, status="5.1.1"), line("bounce", "ben", 2, status="550 5.1.1 unknown")]
    bounced.append(line("bounce", "cid", 2, status="5.2.2 full"))
    bring_in(weekly, [*sent("ann", 1, 2), *sent("ben", 1, 2, 3), *sent("cid", 1, 2), *bounced], tmp_path)
    assert is_suppressed("ann@example.org")
    assert not is_suppressed("ben@example.org"), "the server was wrong, or the mailbox came back"
    assert not is_suppressed("cid@example.org")


def test_a_bounced_mail_was_no_opportunity(weekly: List, tmp_path: Path) -> None:
    (ann,) = subscribe(weekly, "ann")
    bring_in(weekly, [line("bounce", "ann", 2, status="5.1.1"), *sent("ann", 1, 2)], tmp_path)
    assert bits(ann) == ("10", "00")
    assert Delivery.objects.get(outcome=Outcome.BOUNCED).campaign_id == Campaign.objects.get(number=2).pk
    assert CampaignFigures.objects.get(campaign__number=2).bounced == 1
    assert Event.objects.get().detail == "5.1.1"


def test_history_older_than_what_is_here_moves_the_numbers_and_their_bits(weekly: List, tmp_path: Path) -> None:
    ann, ben = subscribe(weekly, "ann", "ben")
    for number, at in ((1, week(3)), (2, week(5))):
        Campaign.objects.create(
            list=weekly, number=number, subject="here", body="", state="sent", started_at=at, finished_at=at
        )
        engagement.record_delivered(weekly.pk, number, [ann.subscriber_id, ben.subscriber_id])
    weekly.issues = 2
    weekly.save()
    engagement.record_signs([engagement.Sign(weekly.pk, 2, ann.subscriber_id, "open", week(5))])
    bring_in(weekly, [*sent("ann", 1, 2, 4), *opened("ann", 4)], tmp_path)
    assert list(Campaign.objects.order_by("number").values_list("external_key", flat=True)) == [
        "2025-w01", "2025-w02", "", "2025-w04", "",
    ]  # fmt: skip
    assert (bits(ann), bits(ben)) == (("11111", "00011"), ("00101", "00000"))


def test_a_second_part_of_a_history_fits_in(weekly: List, tmp_path: Path) -> None:
    (ann,) = subscribe(weekly, "ann")
    bring_in(weekly, [*sent("ann", 3), *opened("ann", 3)], tmp_path)
    assert bring_in(weekly, [*sent("ann", 1), *opened("ann", 1, 3)], tmp_path) == Counts(2, 1, 0)
    assert bits(ann) == ("11", "11")


def test_every_refused_line_says_why(weekly: List, tmp_path: Path) -> None:
    subscribe(weekly, "ann", "ben")
    subscribe(weekly, "private", consent="none")
    good = [*sent("ann", 1), *sent("private", 1)]
    refused = {
        "not a subscriber of this list": line("sent", "stranger", 1),
        "no line says that this campaign was sent": line("open", "ann", 9),
        "no line says that this person was sent the campaign": line("open", "ben", 1),
        "this person got the campaign at another time already": line("sent", "ann", 1, after=timedelta(hours=1)),
        "this person does not agree to tracking": line("open", "private", 1),
        "type must be one of sent, open, click, bounce": {**good[0], "type": "read"},
        "email is missing": {**good[0], "email": ""},
        "email must be text": {**good[0], "email": 7},
        "url is missing": line("click", "ann", 1),
        "url must begin with https:// or http://": line("click", "ann", 1, url="javascript:alert(1)"),
        "at is no ISO time, such as 2025-02-14T08:00:00Z": {**good[0], "at": "14 Feb"},
        "at has no time zone; end it with Z or an offset": {**good[0], "at": "2025-01-03T08:00:00"},
        "at lies in the future": {**good[0], "at": "2031-01-03T08:00:00Z"},
        "campaign holds a NUL character": {**good[0], "campaign": "a\0b"},
        "not a JSON object": [],
    }
    assert bring_in(weekly, [*good, *refused.values()], tmp_path) == Counts(2, 0, len(refused))  # type: ignore[list-item]
    report = (tmp_path / "refused.csv").read_text(encoding="utf-8")
    for reason in refused:
        assert reason in report


@pytest.mark.parametrize(
    ("raw", "reason"),
    [(b"{'type'", "not JSON"), (b'{"email": "\xe9"}', "not UTF-8"), (b'{"a":"' + b"x" * 10_000_000, "longer than")],
)
def test_lines_that_cannot_be_read_are_refused_and_the_rest_is_taken(
    weekly: List, tmp_path: Path, raw: bytes, reason: str
) -> None:
    subscribe(weekly, "ann")
    file = BytesIO(raw + b"\n" + json.dumps(sent("ann", 1)[0]).encode())
    report = tmp_path / "refused.csv"
    assert history.import_history(file, to=weekly, report=report, now=NOW) == Counts(1, 0, 1)
    assert reason in report.read_text(encoding="utf-8")


def test_a_mark_of_the_encoding_and_cells_of_a_report_are_harmless(weekly: List, tmp_path: Path) -> None:
    subscribe(weekly, "ann")
    file = BytesIO(b"\xef\xbb\xbf" + json.dumps(sent("ann", 1)[0]).encode() + b"\r\n=HYPERLINK(1)\r\n")
    report = tmp_path / "refused.csv"
    assert history.import_history(file, to=weekly, report=report, now=NOW) == Counts(1, 0, 1)
    assert "'=HYPERLINK(1)" in report.read_text(encoding="utf-8")


def test_of_those_who_agreed_to_the_date_only_the_date_is_kept(weekly: List, tmp_path: Path) -> None:
    (dated,) = subscribe(weekly, "dated", consent="hygiene")
    lines = [*sent("dated", 1, 2), *opened("dated", 2)]
    assert bring_in(weekly, lines, tmp_path) == Counts(3, 0, 0)
    found = Engagement.objects.get(pk=dated.pk)
    assert (found.delivered.count("1"), found.engaged.count("1")) == (0, 0)
    assert found.opened_at == week(2).replace(hour=0)
    assert not Event.objects.exists()
    assert bring_in(weekly, lines, tmp_path) == Counts(0, 3, 0)


def test_age_and_window_count_from_the_first_mail(weekly: List, tmp_path: Path) -> None:
    names = ("reader", "silent")
    _reader, silent = subscribe(weekly, *names, since=NOW)
    lines = [one for name in names for one in sent(name, *range(1, 41))]
    bring_in(weekly, [*lines, *opened("reader", *range(1, 41))], tmp_path)
    silent.refresh_from_db()
    assert silent.created_at == week(1)
    found = policies.judge(weekly.pk, at=week(41))
    assert [person.subscription_id for person in found.remove] == [silent.pk]
    assert found.judged == 2


def test_the_command_speaks_json(weekly: List, tmp_path: Path, settings: Any) -> None:
    settings.MEDIA_ROOT = str(tmp_path)
    subscribe(weekly, "ann")
    path = tmp_path / "history.ndjson"
    path.write_text("\n".join(map(json.dumps, [*sent("ann", 1), *sent("stranger", 1)])), encoding="utf-8")
    out = StringIO()
    call_command("import_engagement", str(path), "--list", "weekly", "--json", stdout=out)
    found = json.loads(out.getvalue())
    assert (found["imported"], found["duplicate"], found["refused"]) == (1, 0, 1)
    assert Path(found["report"]).exists()
    for arguments in ((str(path), "--list", "nowhere"), (str(tmp_path / "none.ndjson"), "--list", "weekly")):
        with pytest.raises(CommandError) as refused:
            call_command("import_engagement", *arguments)
        assert refused.value.returncode == 2
