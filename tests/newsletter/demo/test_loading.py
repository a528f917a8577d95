"""The demo's year is quick to load, the same each time, and true: figures, events, ledger and bits agree."""

from datetime import timedelta
from itertools import pairwise

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from pytest_django.fixtures import Settings

from campaigns import composing, reporting
from campaigns.models import Campaign, CampaignFigures, CampaignState, Delivery, Link
from newsletter.demo import loading, texts
from newsletter.demo.history import sending_times
from newsletter.demo.people import WEEKS, people
from subscribers.hygiene import policies, pruning
from subscribers.models import ConsentRecord, HygieneRun, List, Subscriber, Subscription, Suppression
from tests.newsletter.demo.conftest import NOW, Demo
from tracking.models import Event, EventKind, Verdict


def rows(statement: str) -> list[tuple[object, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        found: list[tuple[object, ...]] = cursor.fetchall()
        return found


def weekly() -> List:
    return List.objects.get(slug=loading.SLUG)


def test_it_loads_in_time(demo: Demo) -> None:
    assert demo.loaded.is_new
    assert demo.seconds < 30


def test_a_second_load_changes_nothing(demo: Demo) -> None:
    again = loading.load(now=NOW + timedelta(days=9))
    assert (again.is_new, again.subscribers, again.campaigns) == (False, 2_000, demo.loaded.campaigns)
    assert (again.deliveries, again.events) == (demo.loaded.deliveries, demo.loaded.events)


def test_outside_the_demo_it_is_refused(settings: Settings, db: None) -> None:
    settings.DEMO = False
    with pytest.raises(CommandError, match="DEMO=1") as refused:
        call_command("load_demo")
    assert refused.value.returncode == 2


def test_the_same_seed_gives_the_same_people() -> None:
    first, second = people(300, seed=5), people(300, seed=5)
    assert first == second
    assert [person.email for person in people(300, seed=6)] != [person.email for person in first]


def test_every_address_is_at_a_domain_that_nobody_owns(demo: Demo) -> None:
    hosts = {person.email.rpartition("@")[2] for person in demo.people}
    assert all(host.endswith(".example") or host in {"example.com", "example.net", "example.org"} for host in hosts)
    assert len({person.email for person in demo.people}) == 2_000


def test_the_year_ends_now_and_is_numbered_without_a_gap(demo: Demo) -> None:
    campaigns = Campaign.objects.filter(list=weekly(), state=CampaignState.SENT).order_by("number")
    assert [campaign.number for campaign in campaigns] == list(range(1, WEEKS + 1))
    assert weekly().issues == WEEKS
    newest = campaigns[WEEKS - 1].started_at
    assert newest is not None
    assert timedelta(hours=12) <= NOW - newest < timedelta(days=8)


@pytest.mark.parametrize("hour", [1, 7, 8, 20])
@pytest.mark.parametrize("day", range(7))
def test_the_newest_issue_is_never_of_the_future(day: int, hour: int) -> None:
    now = NOW.replace(hour=hour) + timedelta(days=day)
    times = sending_times(now, weeks=3)
    assert timedelta(hours=12) <= now - times[-1] < timedelta(days=7, hours=12)
    assert all(later - earlier == timedelta(weeks=1) for earlier, later in pairwise(times))


def test_figures_are_what_the_events_say(demo: Demo) -> None:
    """Distinct deliveries with any event, with a human one, and hits."""
    counted = {
        campaign: tuple(figures)
        for campaign, *figures in rows(
            """
            SELECT campaign_id,
                   count(DISTINCT subscriber_id) FILTER (WHERE kind = 1),
                   count(DISTINCT subscriber_id) FILTER (WHERE kind = 1 AND verdict = 1),
                   coalesce(sum(hits) FILTER (WHERE kind = 1), 0),
                   count(DISTINCT subscriber_id) FILTER (WHERE kind = 2),
                   count(DISTINCT subscriber_id) FILTER (WHERE kind = 2 AND verdict = 1),
                   coalesce(sum(hits) FILTER (WHERE kind = 2), 0),
                   count(*) FILTER (WHERE kind = 5), count(*) FILTER (WHERE kind = 6)
            FROM tracking_event GROUP BY campaign_id
            """
        )
    }
    names = (
        "pk", "opens_raw", "opens_human", "open_hits", "clicks_raw", "clicks_human", "click_hits", "bounced",
        "complained",
    )  # fmt: skip
    stored = {campaign: tuple(figures) for campaign, *figures in CampaignFigures.objects.values_list(*names)}
    assert stored == counted


def test_the_ledger_agrees_with_the_events(demo: Demo) -> None:
    assert not rows(
        """
        SELECT d.campaign_id, d.subscriber_id FROM campaigns_delivery d
        LEFT JOIN (
            SELECT campaign_id, subscriber_id,
                   bool_or(kind = 1)::int + 2 * bool_or(kind = 2)::int AS seen,
                   min(at) FILTER (WHERE kind = 1 AND verdict = 1) AS opened_at,
                   min(at) FILTER (WHERE kind = 2 AND verdict = 1) AS clicked_at
            FROM tracking_event WHERE kind IN (1, 2) GROUP BY 1, 2
        ) e USING (campaign_id, subscriber_id)
        WHERE (d.seen, d.opened_at, d.clicked_at) IS DISTINCT FROM (coalesce(e.seen, 0), e.opened_at, e.clicked_at)
        """
    )


def test_the_bits_agree_with_the_ledger(demo: Demo) -> None:
    """One bit for each issue that arrived, one for each that a person was seen to read."""
    found = rows(
        """
        SELECT u.id, e.delivered::text, e.engaged::text,
               array_agg(c.number ORDER BY c.number) FILTER (WHERE d.outcome <> 2),
               array_agg(c.number ORDER BY c.number) FILTER (WHERE coalesce(d.opened_at, d.clicked_at) IS NOT NULL)
        FROM subscribers_subscription u
        JOIN subscribers_subscriber s ON s.id = u.subscriber_id AND s.tracking_consent = 'full'
        JOIN campaigns_campaign c ON c.list_id = u.list_id
        JOIN campaigns_delivery d ON d.campaign_id = c.id AND d.subscriber_id = u.subscriber_id
        JOIN subscribers_engagement e ON e.subscription_id = u.id
        GROUP BY u.id, e.delivered, e.engaged
        """
    )
    assert len(found) > 1_800
    for _subscription, delivered, engaged, arrived, read in found:
        assert _numbers(delivered) == (arrived or [])
        assert _numbers(engaged) == (read or [])


def _numbers(bits: object) -> list[int]:
    return [place for place, bit in enumerate(str(bits), start=1) if bit == "1"]


def test_events_are_final_and_within_the_year(demo: Demo) -> None:
    assert not Event.objects.filter(at__gte=NOW).exists()
    settled = NOW - timedelta(hours=1)
    assert not Event.objects.filter(at__lt=settled, is_final=False).exists()


def test_each_persona_leaves_its_own_trace(demo: Demo) -> None:
    persona = {person.email: person.persona.name for person in demo.people}
    email = dict(Subscriber.objects.values_list("pk", "email"))
    seen: dict[str, set[tuple[int, int]]] = {}
    for subscriber, kind, verdict in Event.objects.filter(kind__in=(1, 2)).values_list(
        "subscriber_id", "kind", "verdict"
    ):
        seen.setdefault(persona[email[subscriber]], set()).add((kind, verdict))
    opened, clicked = EventKind.OPEN, EventKind.CLICK
    human, machine = Verdict.HUMAN, Verdict.MACHINE
    assert seen["shows images"] == {(opened, human), (clicked, human)}
    assert seen["blocks images"] == {(clicked, human)}
    assert seen["reads with Apple Mail"] == {(opened, machine), (clicked, human)}
    assert seen["sits behind a scanner"] == {(opened, human), (opened, machine), (clicked, human), (clicked, machine)}
    assert "never read" not in seen


def test_who_did_not_agree_leaves_no_trace(demo: Demo) -> None:
    silent = Subscriber.objects.exclude(tracking_consent="full")
    assert set(silent.values_list("tracking_consent", flat=True)) == {"none", "hygiene"}
    ids = list(silent.values_list("pk", flat=True))
    assert not Event.objects.filter(subscriber_id__in=ids, kind__in=(1, 2)).exists()
    assert not Delivery.objects.filter(subscriber_id__in=ids).exclude(seen=0, opened_at=None, clicked_at=None).exists()


def test_states_have_their_proof(demo: Demo) -> None:
    left = Subscription.objects.filter(state=Subscription.State.UNSUBSCRIBED)
    proofs = ConsentRecord.objects.filter(kind=ConsentRecord.Kind.UNSUBSCRIBED)
    assert left.count() == proofs.count() > 40
    assert left.filter(unsubscribed_by=None).count() == 0
    assert sum(CampaignFigures.objects.values_list("unsubscribed", flat=True)) == left.count()
    assert Subscription.objects.filter(state=Subscription.State.PENDING).exists()
    assert Suppression.objects.count() == Subscriber.objects.exclude(suppressed_at=None).count() > 20
    agreed = ConsentRecord.objects.filter(kind__in=("confirmed", "imported")).values("subscriber_id")
    active = Subscription.objects.filter(state=Subscription.State.ACTIVE)
    assert not active.exclude(subscriber_id__in=agreed).exists()


def test_nothing_is_sent_to_people_who_had_gone(demo: Demo) -> None:
    assert not rows(
        """
        SELECT 1 FROM campaigns_delivery d JOIN campaigns_campaign c ON c.id = d.campaign_id
        JOIN subscribers_subscription u ON u.list_id = c.list_id AND u.subscriber_id = d.subscriber_id
        WHERE (u.state = 'unsubscribed' AND d.sent_at > u.state_since) OR d.sent_at < u.created_at
        """
    )


def test_hygiene_finds_some_dozens_and_holds_others_back(demo: Demo) -> None:
    found = policies.judge(weekly().pk, at=NOW)
    assert found.judged > 1_500
    assert 40 <= len(found.remove) <= 120
    assert {"no_consent", "protected", "too_new"} <= set(found.held_back)


def test_the_status_of_an_issue_is_believable(demo: Demo) -> None:
    campaign = Campaign.objects.get(list=weekly(), number=WEEKS - 2)
    status = reporting.status(campaign.pk)
    assert status["state"] == "sent"
    assert status["deliveries"] == {"accepted": campaign.audience}
    assert 0.2 < status["opens"]["human"] / campaign.audience < status["opens"]["raw"] / campaign.audience < 0.8
    assert 0.05 < status["clicks"]["human"] / campaign.audience < status["clicks"]["raw"] / campaign.audience < 0.4


def test_a_draft_for_next_week_waits_and_nothing_is_scheduled(demo: Demo) -> None:
    drafts = Campaign.objects.exclude(state=CampaignState.SENT)
    assert [campaign.state for campaign in drafts] == [CampaignState.DRAFT]
    preview = composing.preview(drafts[0])
    assert preview.warnings == []
    assert "Robin" in preview.html or "first_name" not in drafts[0].body


def test_every_letter_compiles_and_has_links_enough_to_catch_a_scanner(demo: Demo) -> None:
    for week in range(1, 54):
        letter = texts.letter_of_week(NOW.fromisocalendar(2026, week, 4))
        compiled = composing.compile_campaign(
            Campaign(list=weekly(), subject=letter.subject, preheader=letter.preheader, body=letter.body)
        )
        assert compiled.warnings == []
        assert len(compiled.links) >= 3


def test_the_japanese_list_was_sent_in_japanese(demo: Demo) -> None:
    japanese = List.objects.get(slug=loading.JAPANESE_SLUG)
    campaign = Campaign.objects.get(list=japanese, number=1)
    assert "縁側" in campaign.subject
    assert campaign.audience > 30
    assert Link.objects.filter(campaign=campaign, url__contains="ja.wikipedia.org").count() >= 3


def test_the_scheduled_hygiene_names_who_goes_and_undoing_it_brings_everybody_back(demo: Demo) -> None:
    garden = List.objects.get(slug="leafmould")
    before = active(garden)
    pruning.run_scheduled(garden.pk, now=NOW)
    preview = HygieneRun.objects.get(list=garden, kind=HygieneRun.Kind.PREVIEW)
    named = set(preview.entries.values_list("subscription_id", flat=True))
    assert len(named) > 30
    assert active(garden) == before, "a preview changes nothing"
    run = pruning.run(garden.pk, at=preview.at, approve=preview.pk, actor="Ines")
    assert set(run.entries.values_list("subscription_id", flat=True)) == named
    assert active(garden) == before - named
    assert pruning.undo(run.pk, actor="Ines") == len(named)
    assert active(garden) == before


def active(newsletter: List) -> set[int]:
    return set(Subscription.objects.filter(list=newsletter, state="active").values_list("pk", flat=True))
