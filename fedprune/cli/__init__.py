"""The command line: ``fedprune run``, ``sweep`` and ``report``, and ``python -m launch.*``.

Only here are flags known. What takes long to import, as JAX, is imported when a command line has
been found to be right.
"""
