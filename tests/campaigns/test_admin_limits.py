"""Sending limits in the admin: who may set them, what is refused, and that a change is heard."""

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from campaigns import limiting
from campaigns.models import Batch, Campaign, SendingLimit
from subscribers.models import List, Subscriber
from tests.conftest import NOW

pytestmark = pytest.mark.django_db(transaction=True)
ADD = "admin:campaigns_sendinglimit_add"


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    limiting.forget()


def typed(**changes: Any) -> dict[str, Any]:
    fields = {"name": "Gmail", "domains": "gmail.com", "sender": "", "per_second": "10", "per_day": ""}
    return {**fields, "warm_up_start": "", "warm_up_first": "200", "warm_up_growth": "50", **changes}


def errors(response: Any) -> str:
    form = response.context["adminform"].form
    return " ".join(str(error) for listed in form.errors.values() for error in listed)


def test_a_limit_is_stored_as_addresses_have_their_domains(admin_client: Client) -> None:
    admin_client.post(
        reverse(ADD), typed(domains="GMail.com, @googlemail.com\nbücher.example gmail.com\n*.edu hotmail.*")
    )
    limit = SendingLimit.objects.get()
    assert limit.domains.split() == [
        "gmail.com",
        "googlemail.com",
        "xn--bcher-kva.example",
        "*.edu",
        "hotmail.*",
    ]
    page = admin_client.get(reverse("admin:campaigns_sendinglimit_changelist")).content.decode()
    assert "gmail.com, googlemail.com, xn--bcher-kva.example, …" in page
    assert "10 a second" in page


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"per_second": ""}, "Nothing is limited yet"),
        ({"per_second": "0"}, "greater than or equal to 0.1"),
        ({"per_second": "-3"}, "greater than or equal to 0.1"),
        ({"per_second": "fast"}, "Enter a number"),
        ({"per_day": "0"}, "greater than or equal to 1"),
        ({"domains": "gmail"}, "is not a domain such as"),
        ({"domains": "a@gmail.com"}, "is not a domain such as"),
        ({"domains": "*"}, "is not a domain such as"),
        ({"domains": "[a-z].com"}, "is not a domain such as"),
        ({"domains": "\udce4.com".encode("utf-8", "replace").decode()}, "is not a domain such as"),
        ({"domains": " ".join(f"d{i}.example" for i in range(201))}, "At most 200 domains"),
        ({"name": ""}, "required"),
        ({"warm_up_start": "2026-13-01"}, "valid date"),
        ({"warm_up_start": "2026-11-02", "warm_up_growth": "0"}, "greater than or equal to 1"),
    ],
)
def test_what_limits_nothing_or_cannot_be_is_refused_in_words(
    admin_client: Client, changes: dict[str, str], sentence: str
) -> None:
    response = admin_client.post(reverse(ADD), typed(**changes))
    assert sentence in errors(response)
    assert not SendingLimit.objects.exists()


def test_a_provider_fills_in_its_domains(admin_client: Client) -> None:
    page = admin_client.get(reverse(ADD), {"provider": "Microsoft"}).content.decode()
    assert "hotmail.*" in page
    assert "?provider=GMX%20and%20Web.de" in page
    assert admin_client.get(reverse(ADD), {"provider": "nobody"}).status_code == 200


def test_a_warm_up_says_what_it_comes_to(admin_client: Client) -> None:
    limit = SendingLimit.objects.create(name="New", per_day=1_000, warm_up_start=date(2026, 11, 2))
    page = admin_client.get(reverse("admin:campaigns_sendinglimit_change", args=[limit.pk])).content.decode()
    assert "2 Nov: 200 · 3 Nov: 300 · 4 Nov: 450 · 5 Nov: 675 · 9 Nov: 1,000" in page


def test_setting_limits_is_a_right_of_its_own(client: Client) -> None:
    writer = User.objects.create_user("writer", is_staff=True)
    client.force_login(writer)
    assert client.get(reverse(ADD)).status_code == 403
    writer.user_permissions.add(Permission.objects.get(codename="add_sendinglimit"))
    assert client.get(reverse(ADD)).status_code == 200


def test_whoever_waits_asks_again_when_a_limit_has_changed(
    admin_client: Client,
    garden: List,
    subscribe: Callable[..., list[Subscriber]],
    launched: Callable[..., Campaign],
) -> None:
    subscribe(garden, 1)
    campaign = launched()
    limit = SendingLimit.objects.create(name="Gmail", per_day=10)
    tomorrow = NOW + timedelta(days=3650)
    Batch.objects.filter(campaign=campaign).update(throttle=str(limit.pk), not_before=tomorrow)
    retry = Batch.objects.create(campaign=campaign, first_id=1, last_id=1, not_before=tomorrow)
    admin_client.post(reverse("admin:campaigns_sendinglimit_change", args=[limit.pk]), typed(per_day="50"))
    asks_again = Batch.objects.exclude(pk=retry.pk).get(campaign=campaign)
    assert asks_again.not_before < tomorrow
    assert asks_again.throttle == ""
    retry.refresh_from_db()
    assert retry.not_before == tomorrow  # it waits for a server, not for a limit
    Batch.objects.update(throttle=str(limit.pk), not_before=tomorrow)
    admin_client.post(reverse("admin:campaigns_sendinglimit_delete", args=[limit.pk]), {"post": "yes"})
    assert not Batch.objects.filter(not_before=tomorrow).exists()
