"""WSGI entry, for hosts that serve the REST part and the admin without the hot path."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cacheplane.settings")

application = get_wsgi_application()
