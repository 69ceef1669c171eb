from django.apps import AppConfig


class EventsConfig(AppConfig):
    name = "cacheplane.events"
    label = "events"
    verbose_name = "Events"
