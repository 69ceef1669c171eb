"""Messages are kept uncompressed: squeezing a megabyte takes longer than all the rest of a creation, and what it saves
is nothing beside the KV state."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("caching", "0004_list_pages")]

    operations = [
        migrations.RunSQL(
            "ALTER TABLE caching_cacheobject ALTER COLUMN messages SET STORAGE EXTERNAL;",
            "ALTER TABLE caching_cacheobject ALTER COLUMN messages SET STORAGE EXTENDED;",
        ),
    ]
