"""A pytest plugin: real PostgreSQL and Valkey for this run, started before Django reads its settings."""

import atexit
import os
from contextlib import ExitStack

import pytest

from newsletter import embedded

_stack = ExitStack()
engines: embedded.Engines  # set below, before any test module is imported


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    global engines  # noqa: PLW0603  the plugin lives as long as the process
    atexit.register(_stack.close)
    # synchronous_commit=off would lose commits at kill -9; the crash tests switch fsync to what a server has.
    engines = _stack.enter_context(embedded.temporary(prefix="nl-tests-", options={"max_connections": "200"}))
    os.environ.update(engines.environment())
    os.environ.update(
        {**embedded.demo_keys(), "SITE_URL": "http://127.0.0.1:8000", "EDGE_URL": "http://127.0.0.1:8001"}
    )
    os.environ.update({"DATA_DIR": str(engines.place.data), "EMAIL_URL": "smtp://127.0.0.1:1", "DEMO": "0"})


def pytest_unconfigure() -> None:
    _stack.close()
