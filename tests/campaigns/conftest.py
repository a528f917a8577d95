"""Fixtures of the campaigns' tests."""

from collections.abc import Callable

import pytest

from campaigns import composing, scheduling
from campaigns.models import Campaign
from subscribers.models import List
from tests.conftest import NOW

BODY = """# Hello {{ first_name | default: "gardener" }}

It rains. [The forecast](https://weather.example/?a=1&b=2), or [the almanac](https://almanac.example/).
"""


@pytest.fixture
def draft(garden: List) -> Callable[..., Campaign]:
    """Make a draft of the garden list."""

    def make(*, subject: str = "Rain at last", body: str = BODY, **fields: str) -> Campaign:
        return composing.create(list=garden, subject=subject, body=body, **fields)  # type: ignore[arg-type]

    return make


@pytest.fixture
def launched(draft: Callable[..., Campaign]) -> Callable[..., Campaign]:
    """Make a draft and launch it at NOW, as the worker's task would."""

    def make(**fields: str) -> Campaign:
        campaign = draft(**fields)
        scheduling.schedule(campaign.pk, NOW, now=NOW)
        assert scheduling.launch(campaign.pk, now=NOW)
        campaign.refresh_from_db()
        return campaign

    return make
