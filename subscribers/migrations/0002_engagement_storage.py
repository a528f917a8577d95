"""Engagement is updated again and again in place: room on every page, nothing indexed but the key."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("subscribers", "0001_initial")]
    operations = [
        migrations.RunSQL(
            "ALTER TABLE subscribers_engagement SET (fillfactor = 70)",
            "ALTER TABLE subscribers_engagement RESET (fillfactor)",
        ),
    ]
