"""What `manage.py drill` does: figures that anyone can have again, reached with the code that serves callers.

A part is a module with one function that returns `Figure`s. It works on whatever database it is given and leaves
its rows there; `money` gives each part an empty database of its own.
"""
