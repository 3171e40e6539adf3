"""What the fixture ``ephemeral_http`` gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ephemeral import urls

if TYPE_CHECKING:
    from requests import PreparedRequest, Request, Session


def bind_session(base_url: str) -> Session:
    """A session of requests that takes paths, too: they are below one URL.

    Args:
        base_url: Such as ``http://127.4.9.3:8080/``.
    """
    import requests

    class BoundSession(requests.Session):
        """Any request goes through ``prepare_request``; a redirect, which is whole, does not."""

        def prepare_request(self, request: Request) -> PreparedRequest:
            url = str(request.url)
            if not url.lower().startswith(("http://", "https://")):
                request.url = urls.join(base_url, url)
            return super().prepare_request(request)

    return BoundSession()
