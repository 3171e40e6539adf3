"""Requests and answers of AWS's protocols, as they are on the wire."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

WSGI = Callable[[dict[str, Any], Any], Iterable[bytes]]


@dataclass
class Request:
    """One API call.

    Attributes:
        service: From the credentials' scope: ``ec2``, ``s3``, ``ssm``, ``cloudformation``.
        action: Such as ``RunInstances``; for S3, the HTTP method.
        region: From the credentials' scope, too.
        form: The parameters of a query protocol.
        body: The body as it was sent.
    """

    environ: dict[str, Any]
    service: str
    action: str
    region: str
    form: dict[str, str]
    body: bytes

    @classmethod
    def read(cls, environ: dict[str, Any]) -> Request:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(size)
        if len(body) < size:
            raise ConnectionAbortedError("who asked has died while asking")
        environ["wsgi.input"] = io.BytesIO(body)
        scope = re.search(
            r"/([a-z0-9-]+)/([a-z0-9-]+)/aws4_request", environ.get("HTTP_AUTHORIZATION", "")
        )
        region, service = (scope[1], scope[2]) if scope else ("us-east-1", "s3")
        form: dict[str, str] = {}
        action = environ["REQUEST_METHOD"]
        if target := environ.get("HTTP_X_AMZ_TARGET"):
            action = target.rpartition(".")[2]
        elif service != "s3":
            form = dict(parse_qsl(body.decode(), keep_blank_values=True))
            action = form.get("Action", action)
        return cls(environ, service, action, region, form, body)

    def replace_form(self, form: Mapping[str, str]) -> None:
        """Send other parameters to moto; the original ones remain in ``form``."""
        body = urlencode(form).encode()
        self.environ["wsgi.input"] = io.BytesIO(body)
        self.environ["CONTENT_LENGTH"] = str(len(body))

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def listed(self, name: str) -> list[str]:
        """Return a list's items: ``InstanceId.1``, ``InstanceId.2``, …"""
        return [value for key, value in self.form.items() if re.fullmatch(rf"{name}\.\d+", key)]

    def tags(self, kind: str) -> dict[str, str]:
        """Return the tags that ``TagSpecification`` gives resources of a kind."""
        found = {}
        for key, value in self.form.items():
            match = re.fullmatch(r"TagSpecification\.(\d+)\.ResourceType", key)
            if match and value == kind:
                prefix = f"TagSpecification.{match[1]}.Tag."
                for name, text in self.form.items():
                    if name.startswith(prefix) and name.endswith(".Key"):
                        found[text] = self.form[name.removesuffix("Key") + "Value"]
        return found


@dataclass
class Answer:
    """The answer to a call."""

    status: str = "200 OK"
    body: bytes = b""
    headers: list[tuple[str, str]] = field(default_factory=lambda: [("Content-Type", "text/xml")])

    def send(self, start_response: Any) -> list[bytes]:
        headers = [h for h in self.headers if h[0].lower() != "content-length"]
        start_response(self.status, [*headers, ("Content-Length", str(len(self.body)))])
        return [self.body]

    @property
    def ok(self) -> bool:
        return self.status.startswith("200")

    def found(self, tag: str) -> list[str]:
        """Return the texts of all XML elements of a name."""
        return re.findall(rf"<{tag}>([^<]*)</{tag}>", self.body.decode())


def forward(app: WSGI, request: Request) -> Answer:
    """Send a request to moto."""
    answer = Answer()

    def start(status: str, headers: list[tuple[str, str]], _: Any = None) -> Any:
        answer.status, answer.headers = status, headers
        return lambda data: None

    parts = app(request.environ, start)
    answer.body = b"".join(parts)
    if close := getattr(parts, "close", None):
        close()
    return answer


def refuse(code: str, message: str, *, status: str = "400 Bad Request") -> Answer:
    """Return an error in EC2's format."""
    body = (
        f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        "</Errors><RequestID>harness</RequestID></Response>"
    )
    return Answer(status, body.encode())


def refuse_query(code: str, message: str) -> Answer:
    """Return an error in CloudFormation's format."""
    body = f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(
        "400 Bad Request", f"{body}<RequestId>harness</RequestId></ErrorResponse>".encode()
    )


def refuse_json(code: str, message: str) -> Answer:
    """Return an error in SSM's format."""
    body = json.dumps({"__type": code, "message": message}).encode()
    return Answer("400 Bad Request", body, [("Content-Type", "application/x-amz-json-1.1")])


def xml(action: str, inner: str) -> Answer:
    """Return an answer in EC2's format."""
    return Answer(body=f"<{action}Response>{inner}</{action}Response>".encode())


def as_json(value: Any, status: str = "200 OK") -> Answer:
    return Answer(status, json.dumps(value).encode(), [("Content-Type", "application/json")])
