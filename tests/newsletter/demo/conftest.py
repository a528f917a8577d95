"""The demo, loaded once for all of its tests: it takes some seconds."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from django.conf import settings
from django.db import transaction
from pytest_django.plugin import DjangoDbBlocker

from newsletter.demo import loading
from newsletter.demo.people import Person, people

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)  # a Tuesday


@dataclass(frozen=True)
class Demo:
    """What loading gave."""

    loaded: loading.Loaded
    seconds: float
    people: list[Person]


@pytest.fixture(scope="module")
def loaded_demo(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[Demo]:
    """The demo as of NOW, in a transaction that is rolled back behind the last test of the module."""
    with django_db_blocker.unblock():
        settings.DEMO = True
        atomic = transaction.atomic()
        atomic.__enter__()
        try:
            begun = time.monotonic()
            loaded = loading.load(now=NOW)
            yield Demo(loaded, time.monotonic() - begun, people(loading.PEOPLE, seed=loading.SEED))
        finally:
            transaction.set_rollback(True)
            atomic.__exit__(None, None, None)
            settings.DEMO = False


@pytest.fixture
def demo(loaded_demo: Demo, db: None) -> Demo:
    """The loaded demo; what a test changes is rolled back."""
    settings.DEMO = True
    return loaded_demo
