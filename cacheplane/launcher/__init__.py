"""Makes the environment, starts and stops the processes, runs the tests. Standard library only; imports no other room.

It runs before the requirements are installed and in the supervisor, which must not need Django to stay alive.
"""
