"""pytest-asyncio: a coroutine uses the environment."""

import asyncio
from urllib.parse import urlsplit

import pytest


@pytest.mark.asyncio
async def test_a_coroutine_reaches_it(ephemeral_url):
    parts = urlsplit(ephemeral_url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    await writer.drain()
    assert (await reader.read()).endswith(b"ok")
    writer.close()
    await writer.wait_closed()
