"""HTTP sessions for services that require a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from requests import Session


def session(authorization: str, headers: Mapping[str, str]) -> Session:
    """Make a session with these headers and no other credentials.

    Args:
        authorization: The value of the header ``Authorization``; empty to send none.
        headers: Further headers.
    """
    import requests

    made = requests.Session()
    made.headers.update({"User-Agent": "pytest-ephemeral", **headers})

    def authorize(request: Any) -> Any:
        # As `auth`: without it, requests would replace the header by a password of ~/.netrc.
        if authorization:
            request.headers["Authorization"] = authorization
        return request

    made.auth = authorize
    return made
