from django.apps import AppConfig


class AccessConfig(AppConfig):
    name = "cacheplane.access"
    label = "access"
    verbose_name = "Access"
    default_auto_field = "django.db.models.BigAutoField"
