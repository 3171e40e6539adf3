"""pyfakefs: the files are fake, the environment is not."""

from pathlib import Path
from urllib.request import urlopen


def test_with_fake_files(fs, ephemeral_env_function):
    fs.create_file("/fake")
    assert Path("/fake").exists()
    with urlopen(ephemeral_env_function.url, timeout=10) as answer:
        assert answer.read() == b"ok"


def test_after_it(ephemeral_env_function):
    assert not Path("/fake").exists()
    with urlopen(ephemeral_env_function.url, timeout=10) as answer:
        assert answer.read() == b"ok"
