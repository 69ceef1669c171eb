#!/usr/bin/env python3
"""The one entry: `up`, `test` and `lint` of the launcher, and every command of Django.

Any Python can read this file, so that one which is too old hears it in a sentence instead of a SyntaxError.
What it needs to run (an environment with the locked requirements) it makes itself on the first call.
"""

import sys


def main():
    if sys.version_info < (3, 11):
        sys.exit(
            "cacheplane needs Python 3.11 or newer and this is Python %d.%d: "
            "run manage.py with a newer one, for example python3.11 manage.py" % sys.version_info[:2]
        )
    from cacheplane.launcher import commands

    sys.exit(commands.run(sys.argv))


if __name__ == "__main__":
    main()
