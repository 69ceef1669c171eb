"""A sandbox's clock may be set forward; nobody else's, and nobody's back."""

from datetime import timedelta

from django.db import migrations, models

# It fires only for statements that name the column: no call does.
GUARD = """
CREATE FUNCTION billing_clock_only_goes_forward() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.clock_offset < OLD.clock_offset THEN
        RAISE EXCEPTION 'A clock is never set back.' USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.clock_offset > interval '0' AND NOT EXISTS (
        SELECT 1 FROM access_organization AS o WHERE o.id = NEW.organization_id AND o.kind = 'sandbox') THEN
        RAISE EXCEPTION 'Only a sandbox has a clock of its own.' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER billing_clock_only_goes_forward BEFORE INSERT OR UPDATE OF clock_offset ON billing_billingaccount
    FOR EACH ROW EXECUTE FUNCTION billing_clock_only_goes_forward();
"""
NO_GUARD = """
DROP TRIGGER billing_clock_only_goes_forward ON billing_billingaccount;
DROP FUNCTION billing_clock_only_goes_forward();
"""


class Migration(migrations.Migration):
    dependencies = [("billing", "0010_indexes_of_budgets"), ("access", "0008_kind_stays")]

    operations = [
        migrations.AddField(
            model_name="billingaccount",
            name="clock_offset",
            field=models.DurationField(
                default=timedelta(),
                help_text="How far its clock is ahead of the database's. Only a sandbox's ever is, and it only grows.",
            ),
        ),
        migrations.AddConstraint(
            model_name="billingaccount",
            constraint=models.CheckConstraint(
                condition=models.Q(clock_offset__gte=timedelta()), name="clock_never_behind"
            ),
        ),
        migrations.RunSQL(GUARD, NO_GUARD),
    ]
