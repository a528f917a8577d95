"""The admin of people, lists, imports and suppressions; importing a module registers it."""

from subscribers.admin import hygiene, imports, lists, people, suppressions  # noqa: F401
