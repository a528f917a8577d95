"""What spans the apps: the periodic tasks of beat, each a name, a period and nothing else.

Each may run twice, late or on two machines at once: what they do is decided by rows, not by the clock here.
"""

from celery.schedules import crontab

from newsletter.celery import app

app.conf.beat_schedule = {
    "campaigns: what is due": {"task": "campaigns.sweep", "schedule": 5.0, "options": {"expires": 5}},
}
__all__ = ["crontab"]
