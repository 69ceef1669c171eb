"""Which command runs where: the launcher's own, then Django's."""

import os
import sys

from cacheplane.launcher import environment
from cacheplane.launcher.errors import LauncherError

NEED_DEV_REQUIREMENTS = {"test", "lint", "bench"}

OWN_COMMANDS = """\
Commands of the launcher (each has --help):
    up      set everything up and run it: database, engine, web, worker, beat
    test    run all tests, with their own database and engine; arguments go to pytest
    lint    formatting, lint, types, import floors, migrations, deployment checks
"""


def run(argv: list[str]) -> int:
    """Run `manage.py` with these arguments; returns the exit status."""
    command = argv[1] if len(argv) > 1 else "help"
    try:
        environment.enter(argv, with_dev=command in NEED_DEV_REQUIREMENTS)
        return _dispatch(command, argv)
    except LauncherError as error:
        print(f"cacheplane: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _dispatch(command: str, argv: list[str]) -> int:
    # Imported one by one: each command loads only what it runs.
    if command == "up":
        from cacheplane.launcher import up

        return up.main(argv[2:])
    if command == "test":
        from cacheplane.launcher import testing

        return testing.main(argv[2:])
    if command == "lint":
        from cacheplane.launcher import lint

        return lint.main(argv[2:])
    return _django(argv)


def _django(argv: list[str]) -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cacheplane.settings")
    from django.core.management import execute_from_command_line
    from django.db import OperationalError

    if len(argv) == 1 or argv[1:] == ["help"]:
        print(OWN_COMMANDS)
    try:
        execute_from_command_line(argv)
    except OperationalError as error:
        if "--traceback" in argv:
            raise
        raise LauncherError(
            f"The database did not serve this ({str(error).splitlines()[0]}): start the instance with `manage.py up`, "
            f"or name the folder of a running one in DATA_DIR."
        ) from error
    return 0
