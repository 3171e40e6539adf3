"""The program of a guard: the parent, and on Linux the subreaper, of an environment's processes.

It runs without site-packages, and imports little before the first ``fork``, as each millisecond
delays the application's start. So it does not use ``typing``, ``pathlib`` or ``subprocess``, nor
the rest of the package. Modules that are needed after the fork (the control socket, masking) are
imported while the application starts.

It is started by ``guard.py``, in the owner's process.
"""
