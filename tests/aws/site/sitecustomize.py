"""Python imports this first if its folder is on PYTHONPATH: owner processes poll more often, too.

See ``aws.fast_polls``, which does so in the process that imports it.
"""

import sys

if "pytest_ephemeral.broker" in sys.orig_argv:
    import aws.fast_polls  # noqa: F401
