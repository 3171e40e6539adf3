import os

import pytest
from pytest_docker_tools import container, image

server_image = image(name=os.environ["BENCH_IMAGE"])
server = container(image="{server_image.id}", ports={"8080/tcp": None}, scope="session")


@pytest.fixture(scope="session")
def url(server):
    host, port = server.get_addr("8080/tcp")
    return f"http://{host}:{port}/"
