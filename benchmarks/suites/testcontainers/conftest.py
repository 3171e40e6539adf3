import os

import pytest


@pytest.fixture(scope="session")
def url():
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import HttpWaitStrategy

    ready = HttpWaitStrategy(8080).for_status_code(200)
    server = DockerContainer(os.environ["BENCH_IMAGE"]).with_exposed_ports(8080).waiting_for(ready)
    with server:
        yield f"http://{server.get_container_host_ip()}:{server.get_exposed_port(8080)}/"
