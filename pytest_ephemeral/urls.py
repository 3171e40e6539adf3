"""URLs: joined, and shown to people."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

#: A user and a password before the host; a host with a port and an ``@`` in its path is none.
#: A password that should have been quoted may have any letter in it.
_PASSWORD: Final = re.compile(
    r"://([^\s:/?#@]*):(?!\d+(?:[/?#,]|$))(?:(?!,[\w-]+=\w+://)\S)*@",
)


def join(url: str, path: str) -> str:
    """The URL of a page below another URL, with one slash between them.

    Args:
        url: Such as ``http://127.4.9.3:8080/``.
        path: Such as ``/hello``, with or without the slash; may have a query.
    """
    return f"{url.rstrip('/')}/{path.lstrip('/')}" if path else url


def hide_password(text: str) -> str:
    """Text as it may be printed: ``***`` stands for the passwords in its URLs.

    Args:
        text: A URL, or several as ``NAME=URL,NAME=URL``, or anything else, which stays as it is.
    """
    return _PASSWORD.sub(r"://\1:***@", text)


def get_location(url: str) -> str:
    """The host and the port of a URL, as they stand in it, without a user or a password."""
    return urlsplit(url).netloc.rpartition("@")[2]
