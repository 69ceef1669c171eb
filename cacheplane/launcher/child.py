"""Runs as a small script between the supervisor and a service: binds it to its parent's life, then becomes it.

    python -I -S child.py PARENT_PID DEATH_SIGNAL IDENTITY PROGRAM [ARGUMENT ...]

DEATH_SIGNAL is what the kernel sends when the parent dies (0: nothing, a watchdog sees to it). IDENTITY is `same`,
`namespace` (root as an unprivileged user of a private user namespace) or `nobody`: PostgreSQL refuses to run as root.
A script and not a `preexec_fn`, because code between fork and exec is unsafe once the parent has threads.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
UNPRIVILEGED_ID = 1000  # as seen inside the namespace; outside it stays root
NOBODY = 65534
FAILED = 126  # like a shell that may not run a command


def main() -> None:
    parent, death_signal, identity, *command = sys.argv[1:]
    try:
        take_identity(identity)
        die_with(parent=int(parent), death_signal=int(death_signal))
        os.execv(command[0], command)  # not execvp: another identity may not read what that imports
    except OSError as error:
        sys.stderr.write(f"{command[0]} could not be started: {error}\n")
        sys.exit(FAILED)


def take_identity(identity: str) -> None:
    if identity == "namespace":
        uid, gid = os.getuid(), os.getgid()
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER) != 0:
            raise OSError(ctypes.get_errno(), "a user namespace is not allowed here")
        for file, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{UNPRIVILEGED_ID} {uid} 1"),
            ("gid_map", f"{UNPRIVILEGED_ID} {gid} 1"),
        ):
            with open(f"/proc/self/{file}", "w") as stream:
                stream.write(text)
    elif identity == "nobody":
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def die_with(*, parent: int, death_signal: int) -> None:
    """After the identity: a change of user clears the death signal."""
    if death_signal == 0:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:  # it died before the kernel knew whom to tell
        sys.exit(0)


if __name__ == "__main__":
    main()
