"""The Python environment: made once, renewed when the lock changes, repaired after an interruption.

The installer is a script in `uv`'s place: what is tried is when it is called and with what, not the network.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cacheplane.launcher import environment

REPOSITORY = Path(__file__).resolve().parents[2]
# One that no interpreter has, so that none is taken for ready.
LOCK = "not-a-package==1.0 \\\n    --hash=sha256:00\n"

UV = """#!/bin/sh
echo "$@" >> "$UV_CALLS"
case "$1" in
    venv) shift; while [ $# -gt 1 ]; do shift; done; exec {python} -m venv --without-pip "$1" ;;
    pip) [ -e "$UV_CALLS.fail" ] && exit 1; sleep "${{UV_SECONDS:-0}}"; exit 0 ;;
esac
"""


class Checkout:
    """A small copy of the repository, with a command that needs no requirements."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self.calls = folder / "calls"
        shutil.copytree(
            REPOSITORY / "cacheplane" / "launcher",
            self.root / "cacheplane" / "launcher",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        (self.root / "cacheplane" / "__init__.py").touch()
        shutil.copy(REPOSITORY / "manage.py", self.root)
        (self.root / environment.LOCK).write_text(LOCK)
        (self.root / environment.DEV_LOCK).write_text(LOCK + LOCK.replace("package", "tool"))
        programs = folder / "programs"
        programs.mkdir()
        (programs / "uv").write_text(UV.format(python=self.python))
        (programs / "uv").chmod(0o755)
        self.variables = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "UV_CALLS": str(self.calls),
            "HOME": str(folder),
        }

    @property
    def python(self) -> str:
        """The interpreter below the environment in which the tests run."""
        return os.path.realpath(getattr(sys, "_base_executable", sys.executable))

    @property
    def marker(self) -> Path:
        return self.root / ".venv" / environment.MARKER_NAME

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.python, "manage.py", *(arguments or ("up", "--help"))],
            cwd=self.root,
            env=self.variables | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **variables)
        output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors

    def installations(self) -> list[str]:
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line.rpartition("/")[2] for line in lines if line.startswith("pip install")]

    def environments(self) -> int:
        return sum(line.startswith("venv") for line in self.calls.read_text().splitlines())


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


class TestMaking:
    def test_the_first_call_makes_it_says_so_and_goes_on_in_it(self, checkout):
        status, output, errors = checkout.run()
        assert status == 0, errors
        assert "usage: manage.py up" in output
        assert "making the Python environment" in errors
        assert checkout.installations() == ["requirements.txt"]

    def test_the_second_call_makes_nothing(self, checkout):
        checkout.run()
        status, _, errors = checkout.run()
        assert (status, errors) == (0, "")
        assert checkout.installations() == ["requirements.txt"]

    def test_everything_is_installed_by_its_hash(self, checkout):
        checkout.run()
        installation = checkout.calls.read_text().splitlines()[-1]
        assert "--require-hashes -r" in installation

    def test_a_changed_lock_is_installed_into_it(self, checkout):
        checkout.run()
        (checkout.root / "requirements.txt").write_text(LOCK + LOCK.replace("1.0", "2.0"))
        status, _, errors = checkout.run()
        assert status == 0
        assert "up to date" in errors
        assert (checkout.installations(), checkout.environments()) == (["requirements.txt"] * 2, 1)

    def test_tests_and_lint_need_the_tools_too_and_up_needs_them_no_more(self, checkout):
        checkout.run()
        status, output, _ = checkout.run("test", "--help")
        assert (status, "usage: manage.py test" in output) == (0, True)
        assert checkout.installations() == ["requirements.txt", "requirements-dev.txt"]
        checkout.run("lint", "--help")
        checkout.run()
        assert len(checkout.installations()) == 2

    def test_who_wants_no_bytecode_beside_the_sources_has_it_in_the_environment(self, checkout):
        """Each process of ours would compile all that it imports, otherwise."""
        assert checkout.run(PYTHONDONTWRITEBYTECODE="1")[0] == 0
        assert not list((checkout.root / "cacheplane").rglob("__pycache__"))
        kept = {path.name.split(".")[0] for path in (checkout.root / ".venv" / "bytecode").rglob("*.pyc")}
        assert {"commands", "environment"} <= kept

    def test_two_first_calls_at_once_make_one(self, checkout):
        both = [checkout.start(UV_SECONDS="1.5") for _ in range(2)]
        errors = [process.communicate(timeout=120)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], errors
        assert checkout.installations() == ["requirements.txt"]
        assert any("waiting for it" in text for text in errors)


class TestRepair:
    def test_a_failed_installation_says_so_and_is_made_anew(self, checkout):
        failure = checkout.calls.with_name("calls.fail")
        failure.touch()
        status, _, errors = checkout.run()
        assert status == 1
        assert "requirements.txt could not be installed" in errors
        assert "Traceback" not in errors
        failure.unlink()
        assert checkout.run()[0] == 0
        assert checkout.environments() == 2

    def test_one_that_was_killed_is_made_anew_once_its_installer_has_ended(self, checkout):
        process = checkout.start(UV_SECONDS="3")
        while not checkout.installations():
            time.sleep(0.05)
        half_made = checkout.root / ".venv" / "half-made"
        half_made.touch()
        process.kill()
        process.wait()
        assert not checkout.marker.exists()
        status, _, errors = checkout.run()
        assert status == 0, errors
        assert "waiting for it" in errors, "the orphaned installer still holds the lock"
        assert checkout.marker.exists()
        assert not half_made.exists()

    def test_one_whose_interpreter_is_gone_is_made_anew(self, checkout):
        checkout.run()
        for python in (checkout.root / ".venv" / "bin").glob("python*"):
            python.unlink()
        assert checkout.run()[0] == 0
        assert checkout.environments() == 2

    def test_one_whose_python_moved_on_is_made_anew(self, checkout):
        checkout.run()
        lines = checkout.marker.read_text().splitlines()
        checkout.marker.write_text("\n".join(["python3.9", *lines[1:]]))
        assert checkout.run()[0] == 0
        assert checkout.environments() == 2
        assert checkout.marker.read_text().splitlines() == lines


class TestRefusals:
    def test_python_without_venv_names_the_package(self, checkout):
        (checkout.root.parent / "programs" / "uv").unlink()
        hide = checkout.root.parent / "hide"
        hide.mkdir()
        (hide / "sitecustomize.py").write_text(
            "import importlib.util as u; find = u.find_spec\n"
            "u.find_spec = lambda name, *a: None if name == 'ensurepip' else find(name, *a)\n"
        )
        status, _, errors = checkout.run(PYTHONPATH=str(hide), PATH="/nowhere")
        assert status == 1
        assert "apt install python3-venv" in errors
        assert "Traceback" not in errors

    def test_an_environment_that_is_none_does_not_loop(self, checkout):
        checkout.run()
        python = checkout.root / ".venv" / "bin" / "python"
        python.unlink()
        python.symlink_to(checkout.python)
        (checkout.root / ".venv" / "pyvenv.cfg").unlink()
        status, _, errors = checkout.run()
        assert status == 1
        assert "remove that folder and run this again" in errors

    def test_the_current_interpreter_is_left_alone_when_asked(self, checkout):
        status, output, _ = checkout.run(CACHEPLANE_PYTHON_ENV="current")
        assert (status, "usage: manage.py up" in output) == (0, True)
        assert not (checkout.root / ".venv").exists()

    def test_an_interpreter_that_has_everything_is_used_as_it_is(self, tmp_path):
        lock = tmp_path / "requirements.txt"
        lock.write_text(
            f"pytest=={pytest.__version__} \\\n    --hash=sha256:00\nabsent==1 ; sys_platform == 'plan9'\n"
        )
        assert environment.holds(lock)
        lock.write_text(lock.read_text() + LOCK)
        assert not environment.holds(lock)

    @pytest.mark.parametrize("version", [(3, 4), (3, 7), (3, 10)])
    def test_an_older_python_can_read_the_refusal(self, version):
        ast.parse((REPOSITORY / "manage.py").read_text(), feature_version=version)

    def test_an_older_python_is_refused_in_a_sentence(self):
        older = next(
            (found for name in ("3.10", "3.9", "3.8", "3.7", "3.6") if (found := _python(name))), None
        )
        if older is None:
            pytest.skip("no Python older than 3.11 is installed here")
        result = subprocess.run([older, str(REPOSITORY / "manage.py"), "up"], capture_output=True, text=True)
        assert result.returncode == 1
        assert result.stderr.startswith("cacheplane needs Python 3.11 or newer and this is Python 3.")
        assert result.stderr.count("\n") == 1


def _python(version: str) -> str | None:
    """An older Python of this machine that really starts."""
    candidates = [
        shutil.which(f"python{version}"),
        *map(str, Path.home().glob(f".pyenv/versions/{version}*/bin/python")),
    ]
    for candidate in candidates:
        if candidate and subprocess.run([candidate, "-V"], capture_output=True).returncode == 0:
            return candidate
    return None


def test_the_locks_name_versions_and_hashes_only_and_agree():
    locks = [(REPOSITORY / name).read_text() for name in (environment.LOCK, environment.DEV_LOCK)]
    pins = [
        {line.rstrip(" \\") for line in lock.splitlines() if "==" in line and not line.startswith((" ", "#"))}
        for lock in locks
    ]
    assert len(pins[0]) > 50
    assert pins[0] <= pins[1], "what is tested is what runs"
    assert not any(word in lock for lock in locks for word in ("://", "--index", "--find-links", "file:"))
