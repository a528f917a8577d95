"""What was sent before the column existed was closed right after its end; the sweep would do all of it again."""

from django.db import migrations
from django.db.models import F


def mark(apps, schema_editor):
    apps.get_model("campaigns", "Campaign").objects.filter(state="sent", closed_at=None).update(
        closed_at=F("finished_at")
    )


class Migration(migrations.Migration):

    dependencies = [("campaigns", "0005_doubts_and_closing")]

    operations = [migrations.RunPython(mark, migrations.RunPython.noop)]
