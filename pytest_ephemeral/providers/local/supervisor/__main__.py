"""Start a guard: ``python -I -S …/supervisor/__main__.py ID``, with orders on standard input."""

from __future__ import annotations

import os
import sys
from os.path import abspath, dirname

if __name__ == "__main__":
    # -I leaves out the script's own folder. At the end of the path, it shadows no other module.
    sys.path.append(dirname(dirname(abspath(__file__))))

    from supervisor.entry import main  # type: ignore[import-not-found]

    os._exit(main())  # there is nothing left to clean up
