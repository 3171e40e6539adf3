"""The owner process of a run's environments, and its clients.

There is one owner process for each run. pytest, the workers of pytest-xdist and the command line
are its clients. The owner outlives them by as long as it takes to clean up after them.
``client``, ``connection``, ``process`` and ``protocol`` are what clients load: they import nothing
that is heavy. Everything else is loaded by the owner process only.
"""
