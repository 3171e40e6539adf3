"""``[[webhook]]``: post events to a URL, in a format that Slack and similar services display.

https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from pytest_ephemeral.publishers.events import EnvironmentEvent
from pytest_ephemeral.publishers.json_file import describe
from pytest_ephemeral.publishers.web import session
from pytest_ephemeral.text import one_line

if TYPE_CHECKING:
    from pytest_ephemeral.ci import Build
    from pytest_ephemeral.publishers.outbox import Attempts, Outbox


def message(event: EnvironmentEvent, build: Build | None) -> dict[str, Any]:
    """The request's body: ``text`` is for people, the other keys are for programs."""
    return {
        "text": _text(event, build),
        "event": event.outcome,
        "environment": describe(event),
        "build": build and {"ci": build.ci, "url": build.url, "revision": build.revision},
    }


class WebhookChannel(msgspec.Struct, frozen=True):
    """Posts events to one URL.

    Attributes:
        outbox: The outbox for requests.
        url: The URL.
        headers: The headers of each request.
        events: The outcomes to post; if empty, all.
        build: The CI server's build; None outside of CI.
    """

    outbox: Outbox
    url: str
    headers: Mapping[str, str]
    events: frozenset[str]
    build: Build | None

    def tell(self, event: EnvironmentEvent) -> None:
        """Post an event at least once. Its id lets the receiver recognise a repeated one."""
        if self.events and event.outcome not in self.events:
            return
        body = {"id": str(uuid.uuid4()), **message(event, self.build)}
        self.outbox.put(lambda attempts: self._send(body, attempts))

    def _send(self, body: Mapping[str, Any], attempts: Attempts) -> None:
        with session("", self.headers) as http:
            attempts.request(http, "POST", self.url, json=body)


def _text(event: EnvironmentEvent, build: Build | None) -> str:
    sentence = _escape(event.sentence())
    if event.is_up:
        sentence = sentence.replace(_escape(event.url), f"<{_link(event.url)}>", 1)
    where = f" (<{_link(build.url)}|{_escape(build.ci)}>)" if build and build.url else ""
    return sentence + where


def _escape(text: str) -> str:
    """Escape the three characters with a meaning in Slack's message format."""
    text = one_line(text).replace("&", "&amp;")
    return text.replace("<", "&lt;").replace(">", "&gt;")


def _link(url: str) -> str:
    return _escape(quote(url, safe=":/?#[]@!$&'()*+,;=%~"))
