import os
import shutil
import urllib.request

import pytest


@pytest.fixture(scope="session")
def docker_compose_command():
    return "docker-compose" if shutil.which("docker-compose") else "docker compose"


@pytest.fixture(scope="session")
def docker_compose_file(pytestconfig):
    return str(pytestconfig.rootpath / "docker-compose.yml")


@pytest.fixture(scope="session")
def docker_cleanup():
    return [os.environ.get("CLEANUP", "down -v")]


@pytest.fixture(scope="session")
def docker_setup():
    return ["up -d"]  # its default, --wait, is not in docker-compose 1.29


@pytest.fixture(scope="session")
def url(docker_ip, docker_services):
    url = f"http://{docker_ip}:{docker_services.port_for('server', 8080)}/"

    def answers():
        try:
            return urllib.request.urlopen(url).status == 200
        except OSError:
            return False

    docker_services.wait_until_responsive(timeout=30, pause=0.1, check=answers)
    return url
