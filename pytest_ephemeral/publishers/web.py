"""Sessions for services that want a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from requests import Session


def session(authorization: str, headers: Mapping[str, str]) -> Session:
    """A session that sends these headers, and no other credential.

    Args:
        authorization: The header's value; empty for none.
        headers: More of them.
    """
    import requests

    made = requests.Session()
    made.headers.update({"User-Agent": "pytest-ephemeral", **headers})

    def authorize(request: Any) -> Any:
        # As `auth`, because requests would put the password of a ~/.netrc over the header.
        if authorization:
            request.headers["Authorization"] = authorization
        return request

    made.auth = authorize
    return made
