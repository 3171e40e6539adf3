"""The guard itself: parent, and on Linux subreaper, of all that an environment starts.

It runs as a program of its own, without site-packages and with nothing imported that the first
``fork`` does not need: every millisecond here is one that the application starts later. Hence no
``typing``, ``pathlib`` or ``subprocess``, and no import from the rest of the package. What comes
after the fork (the control socket, masking) is imported while the application starts.

Its one caller is ``guard.py``, which speaks for the owner.
"""
