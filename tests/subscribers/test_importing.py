"""Files become subscribers by set: counted, reported, repeatable, and nobody comes back who left."""

import csv
import json
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from django.core.files.base import ContentFile
from django.core.management import CommandError, call_command
from django.db import connection

from subscribers import confirming, importing, staging, suppressing, tasks
from subscribers.models import ConsentRecord, ImportRun, List, SenderIdentity, Subscriber, Subscription
from tests.conftest import NOW, MailServer

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _media(tmp_path: Path, settings: LazySettings) -> None:
    settings.MEDIA_ROOT = str(tmp_path / "media")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "people.csv"


def bring(file: Path, data: str | bytes | None = None, *flags: str) -> dict[str, Any]:
    """Run the command on a file with this content; the JSON that it prints."""
    if data is not None:
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
    out = StringIO()
    call_command("import_subscribers", str(file), "--list", "garden", "--json", *flags, stdout=out)
    found: dict[str, Any] = json.loads(out.getvalue())
    assert list(found) == ["imported", "updated", "unchanged", "refused", "report"]
    return found


def counts(found: dict[str, Any]) -> tuple[int, int, int, int]:
    return found["imported"], found["updated"], found["unchanged"], found["refused"]


def refusals(found: dict[str, Any]) -> list[dict[str, str]]:
    with Path(found["report"]).open(encoding="utf-8", newline="") as report:
        return list(csv.DictReader(report))


def test_people_come_in_with_their_fields_and_proof(garden: List, file: Path) -> None:
    found = bring(file, 'Email,Name,language,tags,plan\nAnn@Mail.example,Ann,de,"rose, oak",pro\n', "--confirmed")
    assert counts(found) == (1, 0, 0, 0)
    ann = Subscriber.objects.get()
    assert (ann.email, ann.email_key, ann.name, ann.language) == ("Ann@mail.example", "ann@mail.example", "Ann", "de")
    assert ann.attributes == {"plan": "pro"}
    assert sorted(tag.name for tag in ann.tags.all()) == ["oak", "rose"]
    assert ann.tracking_consent == "full"
    subscription = ann.subscriptions.get()
    assert (subscription.state, subscription.source) == ("active", "import: people.csv")
    assert ConsentRecord.objects.get().kind == "imported"


def test_without_a_flag_nobody_is_active_and_nobody_is_mailed(garden: List, file: Path) -> None:
    bring(file, "email\na@b.org\n")
    assert Subscription.objects.get().state == "pending"
    assert not confirming.due(now=NOW + timedelta(days=1)).exists()


@pytest.mark.django_db(transaction=True)
def test_send_confirmations_mails_each_once(garden: List, file: Path, mail_server: MailServer) -> None:
    bring(file, "email\na@b.org\nc@d.org\n", "--send-confirmations")
    bring(file, None, "--send-confirmations")
    assert tasks.send_due_confirmations() == 2
    assert tasks.send_due_confirmations() == 0
    bring(file, None, "--send-confirmations")
    assert tasks.send_due_confirmations() == 0
    assert sorted(mail_server.recipients) == ["a@b.org", "c@d.org"]
    assert not Subscription.objects.exclude(state="pending").exists()


def test_importing_again_changes_nothing_and_adds_what_is_new(garden: List, file: Path) -> None:
    assert counts(bring(file, "email,name,city\na@b.org,A,\nc@d.org,C,Bath\n", "--confirmed")) == (2, 0, 0, 0)
    assert counts(bring(file, None, "--confirmed")) == (0, 0, 2, 0)
    # A new name is taken, a blank cell erases nothing, an attribute is added.
    assert counts(bring(file, "email,name,plan\na@b.org,,pro\nC@D.org,Cy,\n", "--confirmed")) == (0, 2, 0, 0)
    a, c = Subscriber.objects.order_by("email_key")
    assert (a.name, a.attributes) == ("A", {"plan": "pro"})
    assert (c.name, c.attributes) == ("Cy", {"city": "Bath"})


def test_somebody_known_from_another_list_is_new_to_this_one(garden: List, sender: SenderIdentity, file: Path) -> None:
    other = List.objects.create(slug="other", name="Other", sender=sender)
    known = Subscriber.objects.create(email="a@b.org", email_key="a@b.org")
    Subscription.objects.create(list=other, subscriber=known, state="active")
    assert counts(bring(file, "email\na@b.org\n")) == (1, 0, 0, 0)
    assert Subscriber.objects.count() == 1


def test_confirmed_lifts_who_waited_but_nobody_who_left_or_was_pruned(garden: List, file: Path) -> None:
    for name, state in [("waits", "pending"), ("left", "unsubscribed"), ("pruned", "pruned"), ("reads", "active")]:
        person = Subscriber.objects.create(email=f"{name}@b.org", email_key=f"{name}@b.org")
        Subscription.objects.create(list=garden, subscriber=person, state=state)
    found = bring(file, "email\nwaits@b.org\nleft@b.org\npruned@b.org\nreads@b.org\n", "--confirmed")
    assert counts(found) == (0, 1, 3, 0)
    states = dict(Subscription.objects.values_list("subscriber__email", "state"))
    assert states == {
        "waits@b.org": "active",
        "left@b.org": "unsubscribed",
        "pruned@b.org": "pruned",
        "reads@b.org": "active",
    }


def test_a_suppressed_address_is_refused_with_the_reason(garden: List, file: Path) -> None:
    suppressing.suppress("a@b.org", reason="complaint", source="", now=NOW)
    found = bring(file, "email\nA@b.org\nc@d.org\n", "--confirmed")
    assert counts(found) == (1, 0, 0, 1)
    [row] = refusals(found)
    assert (row["line"], row["email"]) == ("2", "A@b.org")
    assert "suppressed" in row["reason"]
    assert not Subscriber.objects.filter(email_key="a@b.org").exists()


def test_one_bad_row_in_a_thousand_costs_itself_only(garden: List, file: Path) -> None:
    rows = [f"reader{i}@mail.example,R{i}" for i in range(999)]
    rows.insert(500, "no address,Oops")
    found = bring(file, "email,name\n" + "\n".join(rows) + "\n")
    assert counts(found) == (999, 0, 0, 1)
    [row] = refusals(found)
    assert (row["line"], row["email"]) == ("502", "no address")


def test_every_refused_row_stands_in_the_report_with_its_reason(garden: List, file: Path) -> None:
    data = b"email,name,language\n" + b"\n".join(
        [
            b"a@b.org,A,en",
            b"A@B.org,again,en",
            b"short",
            b"n@b.org," + b"n" * 201 + b",en",
            b"l@b.org,L,much-too-long-a-code",
            b"z@b.org,\x00,en",
            b"=cmd|' /C calc'!A0,formula,en",
            b"x" * 10_000_000,
            b"j@b.org,J\xf6rg,de",
        ]
    )
    found = bring(file, data)
    assert counts(found) == (2, 0, 0, 7)
    report = refusals(found)
    assert [row["line"] for row in report] == ["3", "4", "5", "6", "7", "8", "9"]
    assert report[0]["reason"] == "The same address stands in line 2 already."
    assert "has 1 fields, the header has 3" in report[1]["reason"]
    assert "zero byte" in report[4]["reason"]
    assert report[5]["email"].startswith("'=")
    assert "longer than 64 kB" in report[6]["reason"]
    assert Subscriber.objects.get(email_key="j@b.org").name == "Jörg"


def test_a_field_past_what_a_mail_can_carry_is_refused_by_name(garden: List, file: Path) -> None:
    fits, long = "x" * 10_000, "ü" * 5_001
    found = bring(file, f"email,name,bio\na@b.org,A,{fits}\nb@b.org,B,{long}\n")
    assert counts(found) == (1, 0, 0, 1)
    assert [row["reason"] for row in refusals(found)] == ["The field “bio” is longer than 10 kB."]


@pytest.mark.parametrize(
    ("data", "arguments", "why"),
    [
        ("name\nAnn\n", [], "must name the columns"),
        ("email\na@b.org\n", ["--confirmed", "--send-confirmations"], "Choose one"),
        ("email\na@b.org\n", ["--list", "nothing"], "no list called nothing"),
        (None, [], "No such file"),
    ],
)
def test_bad_input_is_one_clear_line_and_status_2(
    garden: List, file: Path, data: str | None, arguments: list[str], why: str
) -> None:
    with pytest.raises(CommandError, match=why) as refusal:
        bring(file, data, *arguments)
    assert refusal.value.returncode == 2
    assert "\n" not in str(refusal.value)
    assert not Subscriber.objects.exists()


def test_a_sign_up_in_the_middle_of_a_slice_is_not_missed(
    garden: List, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merge's statement cannot see a row that was committed after it began; the slice is merged again."""
    once, attempts = staging._merge_once, []

    def raced(*arguments: Any) -> Any:
        attempts.append(1)
        if len(attempts) == 1:
            raise staging._Raced
        return once(*arguments)

    monkeypatch.setattr(staging, "_merge_once", raced)
    assert counts(bring(file, "email\na@b.org\n")) == (1, 0, 0, 0)
    assert len(attempts) == 2


# Uploads ------------------------------------------------------------------------------------------------------


def upload(garden: List, data: str, *, welcome: str = "confirmed") -> ImportRun:
    run = ImportRun(list=garden, welcome=welcome, source="fair in May")
    run.file.save("people.csv", ContentFile(data.encode()))
    return run


def test_an_upload_is_carried_out_once_with_its_report(garden: List) -> None:
    run = upload(garden, "email\na@b.org\nbad\n")
    tasks.import_file(run.pk)
    tasks.import_file(run.pk)
    run.refresh_from_db()
    assert (run.state, run.imported, run.unchanged, run.refused) == ("done", 1, 0, 1)
    assert "bad" in run.report.read().decode()
    assert ConsentRecord.objects.get().source == "fair in May"


def test_an_upload_that_cannot_be_read_says_why(garden: List) -> None:
    run = upload(garden, "name\nAnn\n")
    tasks.import_file(run.pk)
    run.refresh_from_db()
    assert run.state == "failed"
    assert "must name the columns" in run.message


def test_an_import_that_was_killed_goes_on_where_it_ended(garden: List, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "SLICE", 10)
    run = upload(garden, "email\n" + "".join(f"r{i}@b.org\n" for i in range(25)) + "bad\n")

    class Killed(BaseException):
        pass

    merge_once, slices = staging._merge_once, []

    def die_at_the_second(*arguments: Any) -> Any:
        slices.append(1)
        if len(slices) == 2:
            raise Killed
        return merge_once(*arguments)

    monkeypatch.setattr(staging, "_merge_once", die_at_the_second)
    with pytest.raises(Killed):
        importing.run_import(run.pk, now=NOW)
    run.refresh_from_db()
    assert (run.state, run.imported, run.checkpoint) == ("running", 10, 11)

    # Too early it is left alone; after five silent minutes the sweep finds it.
    ImportRun.objects.update(heartbeat_at=NOW)
    assert importing.abandoned(now=NOW + timedelta(minutes=4)) == []
    later = NOW + timedelta(minutes=6)
    assert importing.abandoned(now=later) == [run.pk]
    importing.run_import(run.pk, now=later)
    run.refresh_from_db()
    assert (run.state, run.imported, run.updated, run.unchanged, run.refused) == ("done", 25, 0, 0, 1)


def test_a_worker_that_was_taken_for_dead_counts_nothing_twice(garden: List, monkeypatch: pytest.MonkeyPatch) -> None:
    run = upload(garden, "email\na@b.org\n")
    merge_once = staging._merge_once

    def overtaken(*arguments: Any) -> Any:
        merged = merge_once(*arguments)
        ImportRun.objects.filter(pk=run.pk).update(checkpoint=999)
        return merged

    monkeypatch.setattr(staging, "_merge_once", overtaken)
    assert not importing.run_import(run.pk, now=NOW)
    assert not Subscription.objects.exists()


def test_the_staging_table_is_gone_afterwards(garden: List, file: Path) -> None:
    bring(file, "email\na@b.org\n")
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('pg_temp.import_stage')")
        assert cursor.fetchone() == (None,)


# Lists --------------------------------------------------------------------------------------------------------


def make_list(*arguments: str) -> dict[str, Any]:
    out = StringIO()
    call_command("create_list", *arguments, "--json", stdout=out)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def test_a_list_is_made_once_with_its_sender() -> None:
    made = make_list("orchard", "--name", "The Orchard", "--from", "Letters@Orchard.example")
    assert made == {"list": "orchard", "created": True}
    assert List.objects.get().sender.email == "Letters@orchard.example"
    assert make_list("orchard", "--name", "Another name") == {"list": "orchard", "created": False}
    assert List.objects.get().name == "The Orchard"


@pytest.mark.parametrize(
    "arguments", [("Or chard", "--name", "X"), ("x", "--name", " "), ("x", "--name", "X", "--from", "no")]
)
def test_a_list_that_cannot_be_is_refused_in_one_line(arguments: tuple[str, ...]) -> None:
    with pytest.raises(CommandError) as refusal:
        make_list(*arguments)
    assert refusal.value.returncode == 2
    assert "\n" not in str(refusal.value)
