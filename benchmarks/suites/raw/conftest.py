"""As little as can be done: the calls that a container needs, made by the controller."""

import http.client
import json
import os
import socket
import time

import pytest


class Engine(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/var/run/docker.sock")


def call(method, path, body=None):
    engine = Engine("docker")
    engine.request(method, path, json.dumps(body or {}), {"Content-Type": "application/json"})
    answer = engine.getresponse()
    text = answer.read()
    assert answer.status < 400, text
    return json.loads(text) if text else None


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        return
    name = f"raw-{time.time_ns()}"
    own = bool(os.environ.get("OWN_NETWORK"))
    if own:
        call("POST", "/networks/create", {"Name": name})
    host = {"PortBindings": {"8080/tcp": [{"HostIp": "127.0.0.1"}]}}
    body = {"Image": os.environ["BENCH_IMAGE"], "ExposedPorts": {"8080/tcp": {}}}
    host |= {"NetworkMode": name} if own else {}
    call("POST", f"/containers/create?name={name}", {**body, "HostConfig": host})
    call("POST", f"/containers/{name}/start")
    port = call("GET", f"/containers/{name}/json")["NetworkSettings"]["Ports"]["8080/tcp"][0]
    url = f"http://127.0.0.1:{port['HostPort']}/"
    config.raw_url, config.raw_name, config.raw_own = url, name, own
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", int(port["HostPort"]))
        try:
            connection.request("GET", "/")
            connection.getresponse()
        except (OSError, http.client.HTTPException):
            time.sleep(0.005)
        else:
            return


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["raw_url"] = node.config.raw_url


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        call("DELETE", f"/containers/{config.raw_name}?force=1&v=1")
        if config.raw_own:
            call("DELETE", f"/networks/{config.raw_name}")


@pytest.fixture(scope="session")
def url(pytestconfig):
    given = getattr(pytestconfig, "workerinput", None)
    return given["raw_url"] if given else pytestconfig.raw_url
