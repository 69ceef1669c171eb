"""The Python environment: `.venv` with exactly the locked requirements, made once and repaired when needed.

The marker `.venv/.requirements-sha256` names the locks that are installed. It is removed before an installation
and written after it, so an environment without a marker is half made and is made anew.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TextIO

from cacheplane.launcher.errors import EnvironmentNotReady

ROOT = Path(__file__).resolve().parents[2]
LOCK = "requirements.txt"
DEV_LOCK = "requirements-dev.txt"
MARKER_NAME = ".requirements-sha256"
PRINT_VERSION = "import sys; print('python%d.%d' % sys.version_info[:2])"

BYTECODE_NAME = "bytecode"
LOCK_FILE_NAME = ".making"  # not `.lock`: uv locks a file of that name itself

# `current` uses the running interpreter as it is: container images install the lock themselves.
CHOICE_VARIABLE = "CACHEPLANE_PYTHON_ENV"
# Holds the pid that replaced itself and how often: exec keeps the pid, so a loop can be seen. Once into the
# environment, and once more when it had to be made anew from inside.
REPLACED_VARIABLE = "CACHEPLANE_REPLACED_PID"
REPLACEMENTS_MAX = 2


def enter(argv: list[str], *, with_dev: bool, root: Path = ROOT) -> None:
    """Return in an interpreter that has the locked requirements; replaces this process where it must.

    `argv` is what to run again in the right interpreter. Raises EnvironmentNotReady.
    """
    if os.environ.get(CHOICE_VARIABLE) == "current":
        return
    locks = [root / LOCK, root / DEV_LOCK] if with_dev else [root / LOCK]
    environment = root / ".venv"
    inside = Path(sys.prefix).resolve() == environment.resolve()
    if not inside and holds(locks[-1]):
        return
    if is_ready(environment, locks, inside=inside):
        if not inside:
            _replace_process(environment, argv)
        return
    with _only_one(environment) as lock_file:
        if not is_ready(environment, locks, inside=inside):
            _make(environment, locks, lock_file, inside=inside)
    _replace_process(environment, argv)


def holds(lock: Path) -> bool:
    """Whether the running interpreter has each unconditional pin of the lock, in that version."""
    for line in lock.read_text().splitlines():
        pin, _, marker = line.rstrip(" \\").partition(" ; ")
        name, equals, version = pin.partition("==")
        if not equals or marker or line.startswith((" ", "#")):
            continue
        try:
            if importlib.metadata.version(name) != version:
                return False
        except importlib.metadata.PackageNotFoundError:
            return False
    return True


def is_ready(environment: Path, locks: list[Path], *, inside: bool = False) -> bool:
    """Whether the environment is whole and its marker names all these locks as they are now."""
    return _is_whole(environment, inside=inside) and set(_digests(locks)) <= set(_marker(environment))


def _is_whole(environment: Path, *, inside: bool) -> bool:
    """Whether an installation has ended well here, with a Python that is still the same version."""
    marker = _marker(environment)
    # When the system's Python moves on under an environment, its packages are in another folder.
    has_moved_on = inside and marker[:1] != [_python_version()]
    return bool(marker) and not has_moved_on and (environment / "bin" / "python").exists()


def _marker(environment: Path) -> list[str]:
    """The Python version and the locks' digests of the last whole installation, or nothing."""
    try:
        return (environment / MARKER_NAME).read_text().split()
    except FileNotFoundError:
        return []


def _digests(locks: list[Path]) -> list[str]:
    return [hashlib.sha256(lock.read_bytes()).hexdigest() for lock in locks]


def _python_version() -> str:
    return f"python{sys.version_info[0]}.{sys.version_info[1]}"


@contextmanager
def _only_one(environment: Path) -> Iterator[TextIO]:
    """Hold the environment's lock file; a second process waits here until the first has finished."""
    try:
        environment.mkdir(exist_ok=True)
        lock_file = (environment / LOCK_FILE_NAME).open("w")
    except OSError as error:
        raise EnvironmentNotReady(
            f"{environment} cannot be made ({error.strerror}): make the folder writable, or install {LOCK} yourself "
            f"and set {CHOICE_VARIABLE}=current."
        ) from error
    with lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another process is making the Python environment; waiting for it")
            fcntl.flock(lock_file, fcntl.LOCK_EX)
        yield lock_file


def _make(environment: Path, locks: list[Path], lock_file: TextIO, *, inside: bool) -> None:
    """Bring the environment to the locks: installs into a whole one, makes a missing or half made one anew."""
    marker, python = environment / MARKER_NAME, environment / "bin" / "python"
    uv = shutil.which("uv")
    if uv is None and importlib.util.find_spec("ensurepip") is None:
        raise EnvironmentNotReady(
            "Python's venv module is incomplete here: run `apt install python3-venv` (as root), then this again."
        )
    can_install = uv is not None or any(environment.glob("lib/*/site-packages/pip"))
    if _is_whole(environment, inside=inside) and can_install:
        _say(f"bringing the Python environment {environment} up to date")
    else:
        _say(f"making the Python environment {environment} with {'uv' if uv else 'venv and pip'}, once")
        _create(environment, uv, lock_file)
    version = subprocess.run([python, "-c", PRINT_VERSION], check=True, capture_output=True, text=True).stdout
    marker.unlink(missing_ok=True)
    _install(python, locks[-1], uv, lock_file)
    unfinished = marker.with_name(marker.name + ".new")
    unfinished.write_text("\n".join([version.strip(), *_digests(locks)]) + "\n")
    unfinished.replace(marker)


def _create(environment: Path, uv: str | None, lock_file: TextIO) -> None:
    _empty(environment)
    base = os.path.realpath(getattr(sys, "_base_executable", sys.executable) or sys.executable)
    program = [uv, "venv", "--quiet", "--allow-existing", "--python", base] if uv else [base, "-m", "venv"]
    _run([*program, str(environment)], lock_file, "the environment could not be created")


def _install(python: Path, lock: Path, uv: str | None, lock_file: TextIO) -> None:
    _say(f"installing {lock.name}; the first time this takes up to a minute")
    with_uv = [str(uv), "pip", "install", "--quiet", "--python", str(python)]
    # Not compiled: most modules are never imported, and it would double the time.
    with_pip = [str(python), "-m", "pip", "install", "--quiet", "--no-compile"]
    program = with_uv if uv else with_pip
    _run([*program, "--require-hashes", "-r", str(lock)], lock_file, f"{lock.name} could not be installed")


def _empty(environment: Path) -> None:
    """Remove what a broken installation left, all but the lock file that is being held."""
    for entry in environment.iterdir():
        if entry.name == LOCK_FILE_NAME:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _run(command: list[str], lock_file: TextIO, complaint: str) -> None:
    """Run an installer. It inherits the lock: if we are killed, the next process waits until it has ended."""
    variables = {
        name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONHOME")
    }
    result = subprocess.run(command, env=variables, pass_fds=(lock_file.fileno(),), stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        raise EnvironmentNotReady(
            f"{complaint}: see the message of {os.path.basename(command[0])} above; running this again continues."
        )


def _replace_process(environment: Path, argv: list[str]) -> NoReturn:
    python = str(environment / "bin" / "python")
    pid, _, times = os.environ.get(REPLACED_VARIABLE, "").partition(" ")
    replacements = int(times) if pid == str(os.getpid()) else 0
    if replacements == REPLACEMENTS_MAX:
        raise EnvironmentNotReady(
            f"{python} does not use {environment}: remove that folder and run this again."
        )
    sys.stdout.flush()
    sys.stderr.flush()
    replaced = {REPLACED_VARIABLE: f"{os.getpid()} {replacements + 1}"}
    os.execve(python, [python, *argv], os.environ | _bytecode_place(environment) | replaced)


def _bytecode_place(environment: Path) -> dict[str, str]:
    """Who wants no bytecode beside the sources gets none, but the many processes that we start need it somewhere:
    without it each of them compiles all that it imports, which triples its start."""
    if not os.environ.get("PYTHONDONTWRITEBYTECODE") or os.environ.get("PYTHONPYCACHEPREFIX"):
        return {}
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(environment / BYTECODE_NAME)}


def _say(line: str) -> None:
    print(f"cacheplane: {line}", file=sys.stderr, flush=True)
