"""A server with moto, stricter rules, a data plane, and faults that tests set.

``python -m aws.server FOLDER [--hollow]`` prints its URL. Tests control it by ``/_harness/…``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")

from aws import acceptance, moto_state
from aws.guests import Guests
from aws.moto_speed import quicken
from aws.stacks import read_urls_of_this_machine
from aws.strict import Strict, Times
from aws.wire import Answer, Request, as_json, refuse, refuse_json, refuse_query
from pytest_ephemeral.aws import USER_AGENT


class Harness:
    """The WSGI application."""

    def __init__(self, moto: Any, guests: Guests) -> None:
        self.strict = Strict(moto, guests, Times())
        self.guests = guests
        self.calls: list[tuple[str, float]] = []
        self.own: set[str] = set()
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.faults: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        #: How many requests for metadata are refused before one is answered.
        self.silent = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if path.startswith("/_harness/"):
            return self._control(environ, path.removeprefix("/_harness/")).send(start_response)
        if path.startswith("/_imds/"):
            return self._metadata(environ, path).send(start_response)
        if "AWSAccessKeyId=" in environ.get("QUERY_STRING", ""):  # a URL signed as before 2014
            said = "Please use AWS4-HMAC-SHA256: buckets made since 2020 take nothing else"
            return refuse("InvalidRequest", said).send(start_response)
        request = Request.read(environ)
        fault = self._fault(request)
        if fault is not None and fault["kind"] == "kill":
            return self._kill(request, fault, start_response)
        if fault is not None and fault["kind"] not in {"lost", "cut", "delay"}:
            return self._refusal(request, fault).send(start_response)
        if fault is not None and fault["kind"] == "delay":
            time.sleep(fault["seconds"])
            fault = None
        answer = self.strict.answer(request)
        if fault is not None and fault["kind"] == "cut":
            half = answer.body[: len(answer.body) // 2]
            return Answer(answer.status, half, answer.headers).send(start_response)
        if fault is not None:
            raise ConnectionAbortedError("the answer is lost")
        return answer.send(start_response)

    def _fault(self, request: Request) -> dict[str, Any] | None:
        """Record a call, and return the fault that it meets, if any."""
        with self._lock:
            name = f"{request.service}:{request.action}"
            self.calls.append((name, time.time()))
            self.asked.append((request.action, request.form))
            if USER_AGENT in request.environ.get("HTTP_USER_AGENT", "").split():
                self.own.add(name)
            for fault in self.faults:
                if fault["times"] > 0 and re.fullmatch(fault["action"], request.action):
                    if fault["after"] > 0:
                        fault["after"] -= 1
                        continue
                    fault["times"] -= 1
                    return fault
        return None

    def _kill(self, request: Request, fault: dict[str, Any], start_response: Any) -> Any:
        """Kill the calling process before the call takes effect or, if late, after it."""
        if fault["late"]:
            self.strict.answer(request)
        os.kill(fault["pid"], signal.SIGKILL)
        raise ConnectionAbortedError("who asked is dead")

    def _refusal(self, request: Request, fault: dict[str, Any]) -> Answer:
        if request.service in {"ssm", "logs"}:
            return refuse_json(fault["code"], "said the harness")
        status = "503 Service Unavailable" if fault["kind"] == "throttle" else "400 Bad Request"
        if fault["code"].startswith("Insufficient"):  # a server error, which boto3 retries
            status = "500 Internal Server Error"
        if request.service == "cloudformation":
            return refuse_query(fault["code"], "said the harness")
        return refuse(fault["code"], "said the harness", status=status)

    def _control(self, environ: dict[str, Any], verb: str) -> Answer:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        sent = json.loads(environ["wsgi.input"].read(size) or b"{}")
        told = getattr(self, f"_tell_{verb}")(**sent)
        return as_json({} if told is None else told)

    # One method for each command of the harness.

    def _tell_fault(self, **fault: Any) -> None:
        with self._lock:
            self.faults.append(fault)

    def _tell_faults(self) -> None:
        with self._lock:
            self.faults = []

    def _tell_calls(self) -> Any:
        with self._lock:
            calls, self.calls = self.calls, []
        return calls

    def _tell_asked(self, action: str) -> list[dict[str, str]]:
        """Return the parameters of an action's calls since this was last called for it."""
        with self._lock:
            found = [form for name, form in self.asked if name == action]
            self.asked = [one for one in self.asked if one[0] != action]
        return found

    def _tell_left(self, base: str, regions: list[str]) -> list[str]:
        with self.strict.lock:
            return moto_state.left(base, regions)

    def _tell_verified(self, regions: list[str]) -> dict[str, str]:
        with self.strict.lock:
            return moto_state.verified(regions)

    def _tell_own(self) -> list[str]:
        """List the calls that the tool itself has made since the start, each once."""
        return sorted(self.own)

    def _tell_times(self, **times: float) -> None:
        for name, seconds in times.items():
            setattr(self.strict.times, name, seconds)

    def _tell_silent(self, requests: int) -> None:
        self.silent = requests

    def _tell_facts(self) -> Any:
        return self.strict.facts

    def _tell_profile(self, name: str, after: int) -> None:
        self.strict.profiles[name] = after

    def _tell_failing(self, **resources: str) -> None:
        self.strict.failing = resources

    def _tell_volumes(self, image: str, region: str, volumes: list[Any]) -> None:
        self.strict.backend(region).amis[image].kept_volumes = volumes

    def _tell_tasks(self, state: str) -> None:
        self.strict.task_state = state

    def _tell_cloud_init(self, id: str) -> str:
        return str(self.guests.cloud_init(id))

    def _tell_reclaim(self, id: str, reason: str) -> None:
        self.strict.reclaim(id, reason)

    def _tell_disk(self, image: str) -> str:
        return str(self.guests.disk(image))

    def _tell_expire(self, id: str) -> None:
        guest = self.guests.get(id)
        assert guest is not None
        script = guest.disk / "usr/local/lib/pytest-ephemeral/expire"
        self.guests.run(guest, ["/bin/sh", str(script)], guest.folder / "expire.log")

    def _metadata(self, environ: dict[str, Any], path: str) -> Answer:
        """Answer as the instance metadata service does, in version 2 only."""
        _, _, id, *rest = path.split("/")
        what, method = "/".join(rest), environ["REQUEST_METHOD"]
        plain = [("Content-Type", "text/plain")]
        if what == "shutdown" and method == "POST":
            self.strict.shutdown(id)
            return Answer(headers=plain)
        if self.silent:
            self.silent -= 1
            return Answer("503 Service Unavailable", b"", plain)
        if what == "latest/api/token":
            asked = method == "PUT" and "HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS" in environ
            status = "200 OK" if asked else "400 Bad Request"
            return Answer(status, b"token", plain)
        if environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN") != "token":
            return Answer("401 Unauthorized", b"", plain)
        instance = self.strict.instance(id)
        item = what.removeprefix("latest/meta-data/")
        if item == "local-ipv4":
            return Answer(body=instance.private_ip.encode(), headers=plain)
        name = item.removeprefix("tags/instance/")
        tags = {tag["key"]: tag["value"] for tag in instance.get_tags()}
        if name not in tags:
            return Answer("404 Not Found", b"", plain)
        return Answer(body=tags[name].encode(), headers=plain)


def main(folder: Path, *, real: bool) -> None:
    """Serve until standard input ends."""
    from moto.ec2.models.amis import Ami
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    class Quiet(MotoRequestHandler):
        def log(self, *_: Any) -> None:
            """Print nothing."""

        def connection_dropped(self, *_: Any) -> None:
            """Close the connection: the answer is lost, or the client was killed."""
            self.close_connection = True

    quicken()
    read_urls_of_this_machine()
    Ami.block_device_mappings = property(acceptance.mappings)
    moto = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, lambda *_: [], threaded=True, request_handler=Quiet)
    url = f"http://127.0.0.1:{server.server_port}"
    guests = Guests(folder, url, real=real)
    server.app = Harness(moto, guests)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(url, flush=True)
    sys.stdin.read()
    guests.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), real="--hollow" not in sys.argv)
