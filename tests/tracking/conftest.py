"""Fixtures of tracking's tests."""

import pytest
from django.conf import settings

from tracking import stream


@pytest.fixture
def streams() -> None:
    """Empty streams; ingest's cursors go with the database of each test."""
    with stream.connect(settings.STREAM_URL) as client:
        client.delete(*(stream.name(number) for number in range(stream.STREAMS)))
