"""A list's issues come from a registry that the campaigns fill; here the tests fill it."""

from collections.abc import Iterator

import pytest

from subscribers.hygiene import opportunities
from tests.subscribers.hygiene.building import Letters


@pytest.fixture(autouse=True)
def _issues(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(opportunities, "issues_of_list", lambda list_id: Letters.known.get(list_id, ()))
    yield
    Letters.known.clear()
