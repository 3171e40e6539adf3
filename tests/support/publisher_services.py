"""GitHub's Deployments API and GitLab's Environments API over HTTP, as documented."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support import web

#: A response: status, headers and body.
Answer = tuple[int, dict[str, str], Any]


class Service:
    """A simulated service on this machine.

    Attributes:
        url: The server's base URL.
        asked: Every request: method, path, body.
        headers: The headers of the last request, with names in lower case.
        faults: Responses to send in turn instead of the normal ones. ``LOST`` executes the request
            and sends no response; None sends the normal response.
    """

    LOST: Answer = (0, {}, None)

    def __init__(self, answer: Callable[[str, str, dict[str, str], Any], Answer]) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.headers: dict[str, str] = {}
        self.faults: deque[Answer | None] = deque()
        self._answer = answer
        service = self

        class Handler(web.Handler):
            def do_GET(self) -> None:
                service._handle(self)

            def do_POST(self) -> None:
                service._handle(self)

        self._server = web.server_of(Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _handle(self, handler: web.Handler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length) or b"null")
        parts = urlsplit(handler.path)
        self.asked.append((handler.command, parts.path, body))
        self.headers = {name.lower(): value for name, value in handler.headers.items()}
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        fault = self.faults.popleft() if self.faults else None
        lost = fault is self.LOST
        right = (
            None if fault and not lost else self._answer(handler.command, parts.path, query, body)
        )
        if lost:
            handler.close_connection = True
            return
        status, headers, answer = fault or right or (500, {}, None)
        handler.answer(status, json.dumps(answer).encode(), **headers)

    @contextmanager
    def running(self) -> Iterator[Service]:
        """Serve requests inside the ``with`` block."""
        with web.serving(self._server):
            yield self


class GitHub(Service):
    """The Deployments API of one repository; it accepts only the token ``secret``."""

    PATH = "/repos/anna/shop/deployments"

    def __init__(self) -> None:
        super().__init__(self._respond)
        self.deployments: list[dict[str, Any]] = []

    def states(self) -> list[list[str]]:
        """The states of each deployment, in order."""
        return [[status["state"] for status in one["statuses"]] for one in self.deployments]

    def _respond(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        if self.headers.get("authorization") != "Bearer secret":
            return 401, {}, {"message": "Bad credentials"}
        rest = path.removeprefix(self.PATH).strip("/").split("/")
        if path == self.PATH and method == "GET":
            found = [one for one in self.deployments if one["task"] == query.get("task")]
            return 200, {}, [{"id": one["id"], "task": one["task"]} for one in found]
        if path == self.PATH and method == "POST":
            if body.get("required_contexts") != [] or not body.get("ref"):
                return 409, {}, {"message": "Conflict: Commit status checks failed"}
            number = 100 + len(self.deployments)
            self.deployments.append({"id": number, "statuses": [], **body})
            return 201, {}, {"id": number}
        if path.startswith(self.PATH) and rest[1:] == ["statuses"] and method == "POST":
            for one in self.deployments:
                if str(one["id"]) == rest[0]:
                    if len(body.get("description", "")) > 140:
                        return 422, {}, {"message": "Validation Failed"}
                    one["statuses"].append(body)
                    return 201, {}, {"id": 1}
        return 404, {}, {"message": "Not Found"}


class GitLab(Service):
    """The Environments API of one project; it accepts ``secret`` as a private or job token."""

    PATH = "/api/v4/projects/42/environments"

    def __init__(self) -> None:
        super().__init__(self._respond)
        self.environments: list[dict[str, Any]] = []

    def _respond(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        if "secret" not in {self.headers.get("private-token"), self.headers.get("job-token")}:
            return 401, {}, {"message": "401 Unauthorized"}
        rest = path.removeprefix(self.PATH).strip("/").split("/")
        if path == self.PATH and method == "GET":
            return 200, {}, [one for one in self.environments if one["name"] == query["name"]]
        if path == self.PATH and method == "POST":
            if any(one["name"] == body["name"] for one in self.environments):
                return 400, {}, {"message": {"name": ["has already been taken"]}}
            number = 7 + len(self.environments)
            self.environments.append({"id": number, "state": "available", **body})
            return 201, {}, self.environments[-1]
        if path.startswith(self.PATH) and rest[1:] == ["stop"] and method == "POST":
            for one in self.environments:
                if str(one["id"]) == rest[0]:
                    one["state"] = "stopped"
                    return 200, {}, one
        return 404, {}, {"message": "404 Not found"}
