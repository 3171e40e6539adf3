"""The owner process of a run's environments, and its clients.

There is one owner process for each run. pytest, the workers of pytest-xdist and the command line
are its clients. When they have ended, the owner destroys their environments, and then ends, too.
Clients import ``client``, ``connection``, ``process`` and ``protocol`` only, which import no heavy
library. Everything else is imported by the owner process only.
"""
