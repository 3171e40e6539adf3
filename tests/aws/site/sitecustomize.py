"""Python imports this first where the folder is on PYTHONPATH: owner processes look more often too.

See ``aws.fast_polls``, which does that in the process that imports it.
"""

import sys

if "pytest_ephemeral.broker" in sys.orig_argv:
    import aws.fast_polls  # noqa: F401
