"""The editors' pages: people are read, files are brought in, addresses are suppressed by typing them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from subscribers import suppressing, tasks
from subscribers.admin.people import EstimatingPaginator
from subscribers.models import ConsentRecord, ImportRun, List, Subscriber, Suppression
from tests.conftest import NOW
from tests.subscribers.conftest import Reader

pytestmark = pytest.mark.django_db


@pytest.fixture
def editor(client: Client, settings: LazySettings, tmp_path: Path) -> Client:
    settings.MEDIA_ROOT = str(tmp_path)
    client.force_login(User.objects.create_superuser("editor", "editor@shed.example", "x"))
    return client


def add(model: str) -> str:
    return reverse(f"admin:subscribers_{model}_add")


@pytest.mark.parametrize("model", ["subscriber", "list", "senderidentity", "importrun", "suppression", "tag"])
def test_every_list_of_rows_opens_empty_and_filled(editor: Client, model: str, reader: Reader) -> None:
    assert editor.get(reverse(f"admin:subscribers_{model}_changelist")).status_code == 200
    assert editor.get(add(model)).status_code == (403 if model == "subscriber" else 200)


def test_people_are_found_by_address_and_name_in_any_case(editor: Client, reader: Reader) -> None:
    page = reverse("admin:subscribers_subscriber_changelist")
    for words, found in (("ANN@mail", True), ("ann", True), ("nobody", False)):
        assert (b"ann@mail.example" in editor.get(page, {"q": words}).content) is found


def test_a_person_shows_subscriptions_and_proof_but_gives_nobody_a_consent(editor: Client, reader: Reader) -> None:
    ConsentRecord.objects.create(subscriber=reader.subscriber, kind="confirmed", text="Send me this newsletter")
    address = reverse("admin:subscribers_subscriber_change", args=[reader.subscriber.pk])
    page = editor.get(address).content
    assert b"The Potting Shed" in page
    assert b"Send me this newsletter" in page
    assert b'name="tracking_consent"' not in page
    assert editor.post(address.replace("change", "delete")).status_code == 403


def test_the_list_of_people_costs_few_queries_however_many_they_are(
    editor: Client, garden: List, subscribe: Callable[..., Any]
) -> None:
    subscribe(garden, 40)
    with CaptureQueriesContext(connection) as queries:
        editor.get(reverse("admin:subscribers_subscriber_changelist"))
    assert len(queries) < 15


def test_a_big_table_is_counted_by_estimate(
    monkeypatch: pytest.MonkeyPatch, garden: List, subscribe: Callable[..., Any]
) -> None:
    subscribe(garden, 30)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE subscribers_subscriber")
    monkeypatch.setattr("subscribers.admin.people.ESTIMATE_FROM", 10)
    everybody = Subscriber.objects.order_by("pk")
    with CaptureQueriesContext(connection) as queries:
        assert EstimatingPaginator(everybody, 10).count == 30
    assert "COUNT" not in queries.captured_queries[0]["sql"]
    assert EstimatingPaginator(everybody.filter(name="x"), 10).count == 0


def test_an_upload_is_queued_shown_and_its_report_downloaded(editor: Client, garden: List) -> None:
    file = SimpleUploadedFile("people.csv", b"email,name\na@b.org,A\nbad,B\n")
    form = {"list": garden.pk, "file": file, "welcome": "confirmed", "source": "fair in May"}
    answer = editor.post(add("importrun"), form)
    run = ImportRun.objects.get()
    assert answer.status_code == 302
    assert answer["Location"].endswith(f"/{run.pk}/change/")
    assert editor.get(answer["Location"])["Refresh"] == "2"
    tasks.import_file(run.pk)
    page = editor.get(answer["Location"])
    assert "Refresh" not in page
    report = reverse("admin:subscribers_importrun_report", args=[run.pk])
    assert report.encode() in page.content
    assert b"bad" in editor.get(report).getvalue()
    assert Client().get(report).status_code == 302


def test_a_file_without_the_right_header_is_refused_in_the_form(editor: Client, garden: List) -> None:
    file = SimpleUploadedFile("people.csv", b"name\nAnn\n")
    page = editor.post(add("importrun"), {"list": garden.pk, "file": file, "welcome": "pending"})
    assert "must name the columns" in page.content.decode()
    assert not ImportRun.objects.exists()


def test_an_address_is_suppressed_by_typing_it_and_found_by_it(editor: Client, reader: Reader) -> None:
    for _again in range(2):
        answer = editor.post(add("suppression"), {"address": "Ann@Mail.example", "source": "asked by phone"})
        assert answer.status_code == 302
    assert Suppression.objects.get().reason == "manual"
    assert suppressing.is_suppressed("ann@mail.example")
    page = reverse("admin:subscribers_suppression_changelist")
    assert b"asked by phone" in editor.get(page, {"q": "ANN@mail.example"}).content
    assert b"asked by phone" not in editor.get(page, {"q": "bea@mail.example"}).content
    assert b"@-sign" in editor.post(add("suppression"), {"address": "no address"}).content


def test_a_list_with_people_on_it_is_not_deleted(editor: Client, reader: Reader) -> None:
    address = reverse("admin:subscribers_list_delete", args=[reader.subscription.list_id])
    assert editor.get(address).status_code == 403


def test_a_suppression_is_lifted_by_typing_the_address_and_saying_why(editor: Client, reader: Reader) -> None:
    suppressing.suppress("ann@mail.example", reason="bounce", source="5.1.1", now=NOW)
    page = reverse("admin:subscribers_suppression_lift")
    assert page in editor.get(reverse("admin:subscribers_suppression_changelist")).content.decode()
    answers: list[tuple[dict[str, str], str]] = [
        ({}, "Say why"),
        ({"address": "Ann@mail.example", "why": "a slip"}, "otherwise the address stays suppressed"),
        ({"address": "bea@mail.example", "why": "a slip", "agreed": "on"}, "not suppressed"),
    ]
    for form, sentence in answers:
        refused = editor.post(page, form)
        assert (refused.status_code, sentence in refused.content.decode()) == (400, True)
    assert suppressing.is_suppressed("ann@mail.example")
    done = editor.post(page, {"address": "Ann@mail.example", "why": "a slip", "agreed": "on"})
    assert done.status_code == 302
    assert not suppressing.is_suppressed("ann@mail.example")


def test_who_may_not_lift_a_suppression_is_not_shown_how(client: Client) -> None:
    user = User.objects.create_user("author", "author@shed.example", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_suppression"))
    client.force_login(user)
    page = reverse("admin:subscribers_suppression_lift")
    assert page not in client.get(reverse("admin:subscribers_suppression_changelist")).content.decode()
    assert client.get(page).status_code == 403
