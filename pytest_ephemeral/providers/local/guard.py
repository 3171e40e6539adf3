"""Start processes under a guard: the owner's side of ``supervisor.py``.

The guard is the parent, and on Linux the subreaper, of all that it starts. It ends them when it
is told to, when its owner dies in whatever way, or when their time is over.
"""
