import urllib.request


def test_answers(url):
    assert urllib.request.urlopen(url, timeout=5).read() == b"ok\n"


def test_answers_again(url):
    assert urllib.request.urlopen(url, timeout=5).read() == b"ok\n"
