"""The editor's room: writing, checking, sending and reading the figures."""

from campaigns.admin import campaigns, layouts, limits  # noqa: F401  (registering is their import)
