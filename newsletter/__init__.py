"""The composition root: settings, wiring and what spans the apps."""

from newsletter.celery import app as celery_app

__all__ = ["celery_app"]
