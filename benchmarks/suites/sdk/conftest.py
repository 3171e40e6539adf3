import os
import time
import urllib.request

import pytest


@pytest.fixture(scope="session")
def url():
    import docker

    client = docker.from_env()
    container = client.containers.run(
        os.environ["BENCH_IMAGE"], detach=True, ports={"8080/tcp": ("127.0.0.1", None)}
    )
    container.reload()
    url = f"http://127.0.0.1:{container.ports['8080/tcp'][0]['HostPort']}/"
    while True:
        try:
            urllib.request.urlopen(url)
            break
        except OSError:
            time.sleep(0.01)
    yield url
    container.remove(force=True, v=True)
    client.close()
