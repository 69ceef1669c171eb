from django.apps import AppConfig


class CachingConfig(AppConfig):
    name = "cacheplane.caching"
    label = "caching"

    def ready(self) -> None:
        from cacheplane.caching import audit

        audit.register()
