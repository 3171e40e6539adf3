"""Join URLs, and hide passwords in them."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

#: A user and a password before the host. A host and port with an ``@`` in the path do not match.
#: A password that is not percent-encoded, as it should be, may have any characters.
_PASSWORD: Final = re.compile(
    r"://([^\s:/?#@]*):(?!\d+(?:[/?#,]|$))(?:(?!,[\w-]+=\w+://)\S)*@",
)


def join(url: str, path: str) -> str:
    """Append a path to a URL, with one slash between them.

    Args:
        url: The URL, such as ``http://127.4.9.3:8080/``.
        path: The path, such as ``/hello`` or ``hello``; may have a query.
    """
    return f"{url.rstrip('/')}/{path.lstrip('/')}" if path else url


def hide_password(text: str) -> str:
    """Replace the passwords in URLs by ``***``.

    Args:
        text: A URL, several as ``NAME=URL,NAME=URL``, or any other text, which stays unchanged.
    """
    return _PASSWORD.sub(r"://\1:***@", text)


def get_location(url: str) -> str:
    """The host and port of a URL, unchanged, without user and password."""
    return urlsplit(url).netloc.rpartition("@")[2]
