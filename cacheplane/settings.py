"""Settings: the process environment first, then `instance.env` in the data folder, then what is said here.

`manage.py up` writes `instance.env`, so that every other command that is given the same `DATA_DIR` reaches the
running instance. In production nothing is written: the environment says everything.
"""

from __future__ import annotations

from pathlib import Path

import environ

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()
DATA_DIR = Path(env.str("DATA_DIR", default=str(BASE_DIR / "var"))).resolve()
env.read_env(str(DATA_DIR / "instance.env"))

# --- What protects ------------------------------------------------------------------------------------------
DEBUG = env.bool("DEBUG", default=False)
SAMPLE_SECRET = "sample-secret-for-tests-and-checks-only-do-not-serve-with-it-0000000000"  # noqa: S105
SECRET_KEY = env.str("SECRET_KEY", default=SAMPLE_SECRET)
API_KEY_PEPPER = env.str("API_KEY_PEPPER", default=SAMPLE_SECRET)
"""Keyed into the digest of every API key: a stolen table alone checks no key. Changing it ends all keys."""
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["127.0.0.1", "localhost", "testserver"])
BASE_URL = env.str("BASE_URL", default="http://127.0.0.1:8000")
SERVED_OVER_TLS = BASE_URL.startswith("https://")
CSRF_TRUSTED_ORIGINS = [BASE_URL]
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if SERVED_OVER_TLS else None
SECURE_SSL_REDIRECT = SERVED_OVER_TLS
SECURE_HSTS_SECONDS = 31_536_000 if SERVED_OVER_TLS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = SERVED_OVER_TLS
SECURE_REDIRECT_EXEMPT = [r"^livez$", r"^readyz$"]
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SERVED_OVER_TLS
SESSION_COOKIE_HTTPONLY = True
X_FRAME_OPTIONS = "DENY"

# --- Django -------------------------------------------------------------------------------------------------
INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "billing",
    "cacheplane",
    "cacheplane.access",
    "cacheplane.engines",
    "cacheplane.kv",
    "cacheplane.events",
    "cacheplane.caching",
]
MIDDLEWARE = [
    "cacheplane.logs.RequestLogMiddleware",
    "cacheplane.api.headers.CallerHeadersMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "cacheplane.urls"
ASGI_APPLICATION = "cacheplane.asgi.application"
WSGI_APPLICATION = "cacheplane.wsgi.application"
LOGIN_REDIRECT_URL = "admin:index"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"
STATIC_ROOT = DATA_DIR / "static"
WHITENOISE_USE_FINDERS = True
"""Static files of the admin are served from the installed packages: no collectstatic before the first run."""
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
APPEND_SLASH = True
SILENCED_SYSTEM_CHECKS: list[str] = []

# --- Database: PostgreSQL, embedded by default ---------------------------------------------------------------
DATABASES = {"default": env.db_url("DATABASE_URL", default="postgres://postgres@127.0.0.1:5432/cacheplane")}
DATABASES["default"]["CONN_MAX_AGE"] = 0
DATABASES["default"].setdefault("OPTIONS", {})
DATABASES["default"]["OPTIONS"].setdefault("application_name", "cacheplane")
DATABASES["default"]["OPTIONS"].setdefault("connect_timeout", 5)
DATABASE_POOL_CONNECTIONS_MAX = env.int("DATABASE_POOL_CONNECTIONS_MAX", default=0)
"""Connections that one process keeps open at most; 0 opens one per request. The web process asks for its own pool."""
if DATABASE_POOL_CONNECTIONS_MAX:
    DATABASES["default"]["OPTIONS"]["pool"] = {
        "min_size": 2,
        "max_size": DATABASE_POOL_CONNECTIONS_MAX,
        "timeout": 5.0,
    }
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
DATABASE_PREPARED_STATEMENTS = env.bool("DATABASE_PREPARED_STATEMENTS", default=True)
"""False behind a pooler that gives a connection to somebody else after each transaction and knows none of them."""
HOT_PATH_DATABASE_THREADS = env.int("HOT_PATH_DATABASE_THREADS", default=8)
"""Threads, each with a connection of its own, that run the hot path's statements in one web process."""

# --- Broker and workers --------------------------------------------------------------------------------------
BROKER_DIR = DATA_DIR / "broker"
CELERY_BROKER_URL = env.str("CELERY_BROKER_URL", default="filesystem://")

# --- Engine --------------------------------------------------------------------------------------------------
ENGINE_URL = env.str("ENGINE_URL", default="http://127.0.0.1:8090")
ENGINE_API_KEY = env.str("ENGINE_API_KEY", default="")
ENGINE_API_KEYS = env.dict("ENGINE_API_KEYS", default={})
"""Keys of engines by their names, `one=KEY,other=KEY`; those that are not named take ENGINE_API_KEY."""
ENGINE_KV_DIR = Path(env.str("ENGINE_KV_DIR", default=str(DATA_DIR / "kv")))
SLOT_WAIT_SECONDS = env.float("SLOT_WAIT_SECONDS", default=10.0)
"""How long a call waits for a free slot before it is told that the engine is overloaded."""
HOLD_COMPLETION_TOKENS = env.int("HOLD_COMPLETION_TOKENS", default=512)
"""Money is set aside for this many tokens of an answer before it begins, and for as many again as it grows."""
CALL_TIMEOUT_SECONDS = env.float("CALL_TIMEOUT_SECONDS", default=300.0)
PREFILL_TIMEOUT_SECONDS = env.float("PREFILL_TIMEOUT_SECONDS", default=7200.0)

# --- Cache objects -------------------------------------------------------------------------------------------
CACHE_DEFAULT_TTL_SECONDS = env.int("CACHE_DEFAULT_TTL_SECONDS", default=3600)
CACHE_STATUS_WORDS = env.str("CACHE_STATUS_WORDS", default="user")
"""`user`: pending, active, expired, error. `reference`: pending, ready, inactive, error."""
CREATE_WAIT_SECONDS_MAX = env.int("CREATE_WAIT_SECONDS_MAX", default=30)
"""The longest that a creation with `Prefer: wait=…` is kept waiting for its precompute."""
CREATE_WAITERS_MAX = env.int("CREATE_WAITERS_MAX", default=32)
"""Creations that wait at once in one web process, each on a thread; what comes beyond is answered at once."""
CACHE_SCHEDULE_LEAD_SECONDS = env.int("CACHE_SCHEDULE_LEAD_SECONDS", default=60)
"""How long before an opening a scheduled object is computed, beside the time that it took last."""
CACHE_SCHEDULE_RETRY_SECONDS = env.int("CACHE_SCHEDULE_RETRY_SECONDS", default=600)
"""How long after an opening was refused, for want of money or room, it is tried again."""
TAGS_PER_ORGANIZATION_MAX = env.int("TAGS_PER_ORGANIZATION_MAX", default=10_000)
PRECOMPUTE_LEASE_SECONDS = env.int("PRECOMPUTE_LEASE_SECONDS", default=30)
PRECOMPUTE_ATTEMPTS_MAX = env.int("PRECOMPUTE_ATTEMPTS_MAX", default=3)
KV_QUOTA_BYTES = env.int("KV_QUOTA_BYTES", default=0)
"""Most bytes that KV states may take on the engine's disk; 0 means all but `KV_DISK_RESERVE_BYTES`."""
KV_DISK_RESERVE_BYTES = env.int("KV_DISK_RESERVE_BYTES", default=1 << 30)

# --- Webhooks ------------------------------------------------------------------------------------------------
WEBHOOK_LEASE_SECONDS = env.int("WEBHOOK_LEASE_SECONDS", default=60)
WEBHOOK_ALLOW_PRIVATE_HOSTS = env.bool("WEBHOOK_ALLOW_PRIVATE_HOSTS", default=False)
"""Webhooks may go to private addresses, to any port and by plain http: for intranets and tests. With it on, any caller
can make this server send requests to its neighbours."""

# --- Exports of usage ----------------------------------------------------------------------------------------
BILLING_EXPORT_URL = env.str("BILLING_EXPORT_URL", default="")
"""Where meter events go as CloudEvents: `file:///a/folder`, or an http or https URL. Empty: nowhere."""
BILLING_EXPORT_TOKEN = env.str("BILLING_EXPORT_TOKEN", default="")
"""The bearer token that an http sink takes."""
BILLING_EXPORT_SOURCE = env.str("BILLING_EXPORT_SOURCE", default="") or BASE_URL
"""The `source` of each event: with its id it names the event for good."""
BILLING_EXPORT_BATCH_EVENTS = env.int("BILLING_EXPORT_BATCH_EVENTS", default=500)

# --- API -----------------------------------------------------------------------------------------------------
REQUEST_BODY_BYTES_MAX = env.int("REQUEST_BODY_BYTES_MAX", default=16 << 20)
DATA_UPLOAD_MAX_MEMORY_SIZE = REQUEST_BODY_BYTES_MAX
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["cacheplane.api.authentication.ApiKeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["cacheplane.api.bodies.JsonRenderer"],
    "DEFAULT_PARSER_CLASSES": [],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "cacheplane.api.bodies.JsonAlways",
    "DEFAULT_METADATA_CLASS": None,
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "cacheplane.api.exceptions.handle",
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Context-cache control plane",
    "DESCRIPTION": "Cache objects for large language models: create, call, extend, delete, with exact billing.",
    "VERSION": "0.1.0",
    "OAS_VERSION": "3.1.1",  # its schemas are JSON Schema's, which is what the typed structs tell of themselves
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "SCHEMA_PATH_PREFIX": "/v1",
    "POSTPROCESSING_HOOKS": ["cacheplane.api.openapi.add_hot_path"],
}

# --- Admin ---------------------------------------------------------------------------------------------------
UNFOLD = {
    "SITE_TITLE": "Context-cache control plane",
    "SITE_HEADER": "Context cache",
    "SHOW_HISTORY": False,  # what operators do stands in the audit entries; these tables change by themselves
    "SHOW_VIEW_ON_SITE": False,
}

# --- Logs ----------------------------------------------------------------------------------------------------
LOG_LEVEL = env.str("LOG_LEVEL", default="INFO")
LOGGING_CONFIG = "cacheplane.logs.configure"
LOGGING = {"level": LOG_LEVEL}
