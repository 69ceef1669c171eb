"""More statistics of the metadata: with the usual hundred samples a pair that happens to be among them looks a hundred
times as frequent as it is, and the list then reads a whole organization's objects to find it."""

from django.db import migrations

SET_STATISTICS = "ALTER TABLE caching_cacheobject ALTER COLUMN metadata SET STATISTICS {}"


class Migration(migrations.Migration):
    dependencies = [("caching", "0007_organization_budgets")]

    operations = [migrations.RunSQL(SET_STATISTICS.format(1000), SET_STATISTICS.format(-1))]
