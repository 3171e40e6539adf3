#!/bin/sh
# Installs the shop: a virtual environment in $PREFIX, with $ARTIFACT and what it depends on.
#
# The same script on a laptop, in CI and on a server: it needs python3 and nothing else.
set -eu

: "${PREFIX:?is the folder to install into}"
: "${ARTIFACT:?is the wheel to install}"

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "install.sh: the shop needs Python 3.11 or newer; python3 here is $(python3 --version 2>&1)." >&2
    echo "install.sh: put a newer one first on PATH." >&2
    exit 1
fi

echo "making a virtual environment"
if ! python3 -m venv "$PREFIX"; then
    echo "install.sh: python3 can't make virtual environments; on Debian: apt install python3-venv" >&2
    exit 1
fi

echo "installing $(basename "$ARTIFACT")"
"$PREFIX/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir "$ARTIFACT"
