"""An artifact repository on any HTTP server that accepts PUT: Artifactory, Nexus, WebDAV.

Only GET, HEAD and PUT are used. HTTP has no standard way to list files, so each artifact has a
further file, ``digests/HEX.json``, by which it is found from its digest. Every file is written
once, so a repository that forbids overwriting is supported.

If two processes push the same entry at once, a server that supports ``If-None-Match: *`` accepts
one of them. With other servers, each process checks first, and reads the entry again after
writing it: the second one gets an error. There is a race: if both write at the same moment, the
later entry replaces the earlier one, whose process may have read back its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, urlsplit

from pytest_ephemeral import files
from pytest_ephemeral.artifacts.repository import (
    SHA256,
    StoredRepository,
    blob_path,
    digest_path,
    entry_path,
)
from pytest_ephemeral.errors import (
    ArtifactError,
    ConfigurationError,
    RecordExistsError,
    RecordMissingError,
    StoreError,
    UnavailableError,
    UnlistedError,
)
from pytest_ephemeral.models import Artifact, encode
from pytest_ephemeral.store import Versioned, parts_of

if TYPE_CHECKING:
    from requests import Response, Session

USER: Final = "PYTEST_EPHEMERAL_REPOSITORY_USER"
PASSWORD: Final = "PYTEST_EPHEMERAL_REPOSITORY_PASSWORD"  # noqa: S105 - a variable's name
TOKEN: Final = "PYTEST_EPHEMERAL_REPOSITORY_TOKEN"  # noqa: S105 - a variable's name

T = TypeVar("T")

#: Seconds to wait for a connection, and for the next bytes of a response.
_TIMEOUT: Final = (10.0, 60.0)
_ATTEMPTS: Final = 4
#: Seconds, doubled before each further attempt.
_BACKOFF: Final = 0.5
_CHUNK: Final = 1 << 20


class HttpRepository(StoredRepository):
    """An artifact repository on an HTTP server.

    Args:
        url: Its URL, such as ``https://nexus.example.com/repository/builds/shop``.

    Raises:
        ConfigurationError: The URL is not valid, or contains a user or password.
    """

    def __init__(self, url: str) -> None:
        self._server = HttpBlobStore(url)
        super().__init__(self._server)

    def _keep(self, artifact: Artifact, file: Path) -> Artifact:
        """Upload the content first and the entry last, so that each entry has its content."""
        entry = entry_path(artifact)
        if self._server.size(entry) and self._server.size(blob_path(artifact)) == artifact.size:
            raise RecordExistsError(entry)  # its content was verified before it was written
        self._blobs.upload(blob_path(artifact), file)
        with suppress(RecordExistsError):  # the same bytes have another name or version, too
            self._blobs.create(digest_path(artifact.digest), encode(artifact))
        self._blobs.create(entry, encode(artifact))
        return artifact

    def _by_digest(self, wanted: str) -> Artifact:
        if len(wanted) != len(SHA256) + 64:
            raise ArtifactError(
                f"{wanted} is not a full digest, and {self.url} can't be searched by the start "
                "of a digest: give all 64 digits, or name@version"
            )
        try:
            return self._read(digest_path(wanted))
        except RecordMissingError:
            raise ArtifactError(
                f"no artifact {wanted} is in the repository {self.url}. "
                "Push it with `pytest-ephemeral artifact push FILE`"
            ) from None


class HttpBlobStore:
    """A ``BlobStore`` on an HTTP server.

    Args:
        url: The URL below which its files are.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if not parts.hostname or parts.query or parts.fragment:
            raise ConfigurationError(f"{url!r} is not a repository: give https://HOST/PATH")
        if "@" in parts.netloc:
            raise ConfigurationError(
                f"the repository's URL holds a user or password ({parts.hostname}): set {USER} and "
                f"{PASSWORD}, or {TOKEN}, or write them into ~/.netrc"
            )
        self.url = url.rstrip("/")

    def create(self, path: str, data: bytes) -> str:
        """See ``BlobStore``. Reads the file again after writing it; see the module's docstring."""
        taken = RecordExistsError(f"{path} is already in the repository {self.url}")
        if self._head(path) is not None:
            raise taken
        answer = self._put(path, data, {"If-None-Match": "*"})
        try:
            kept = self.read(path).data
        except RecordMissingError:
            raise self._lost(answer, path) from None
        if kept != data:  # equal if a PUT was repeated because its response was lost
            raise taken
        return files.digest_of([data])

    def read(self, path: str) -> Versioned:
        """See ``BlobStore``. The version is the content's digest."""
        data = self._get(path, b"".join)
        return Versioned(data, files.digest_of([data]))

    def records(self, prefix: str) -> Iterator[tuple[str, bytes]]:  # noqa: ARG002 - the protocol's argument
        """Not supported: HTTP has no standard way to list files."""
        raise UnlistedError(
            f"the repository {self.url} is a plain HTTP server, which has no list. Use the "
            "server's own pages, or name the artifact: name@version or a digest"
        )

    def upload(self, path: str, source: Path) -> None:
        """See ``BlobStore``. Verifies that the file arrived completely."""
        size, digest = source.stat().st_size, files.digest_of(files.chunks(source))
        if self._holds(path, size, digest):
            return
        with source.open("rb") as content:
            # For an empty file, requests uses chunked encoding, which some servers reject.
            checksum = {"X-Checksum-Sha256": digest.removeprefix(SHA256)}
            answer = self._put(path, content if size else b"", checksum)
        if not self._holds(path, size, digest):
            raise self._lost(answer, path)

    def download(self, path: str, destination: Path) -> None:
        """See ``BlobStore``. The local file is replaced atomically."""
        try:
            self._get(path, lambda content: files.replace(destination, content))
        except OSError as error:
            raise StoreError(
                f"{path} can't be kept on this machine: {destination}: {error.strerror}"
            ) from error

    def size(self, path: str) -> int | None:
        """A file's size in bytes; None if it does not exist, or the server does not report it."""
        answer = self._head(path)
        length = answer.headers.get("Content-Length", "") if answer is not None else ""
        return int(length) if length.isdecimal() else None

    # -- requests --------------------------------------------------------------------------

    @cached_property
    def _session(self) -> Session:
        """A session with the credentials of environment variables, or else those of ~/.netrc."""
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3 import Retry

        session = requests.Session()
        session.auth = _authorization(os.environ)
        # A cached 404 of a proxy must not be used, and a file must not be compressed.
        session.headers.update(
            {
                "User-Agent": "pytest-ephemeral",
                "Cache-Control": "no-cache",
                "Accept-Encoding": "identity",
            }
        )
        again = Retry(
            total=_ATTEMPTS - 1,
            backoff_factor=_BACKOFF,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=("GET", "HEAD", "PUT"),
            raise_on_status=False,
            respect_retry_after_header=False,  # it may be an hour
        )
        session.mount(self.url, HTTPAdapter(max_retries=again))
        return session

    def _address(self, path: str) -> str:
        return f"{self.url}/{quote('/'.join(parts_of(path)))}"

    def _put(self, path: str, content: bytes | IO[bytes], headers: dict[str, str]) -> Response:
        with self._reached():
            # No redirects: after a PUT, requests would follow one with a GET.
            return self._session.put(
                self._address(path),
                data=content,
                headers={"Content-Type": "application/octet-stream", **headers},
                timeout=_TIMEOUT,
                allow_redirects=False,
            )

    def _get(self, path: str, consume: Callable[[Iterator[bytes]], T]) -> T:
        """Read a file. A transfer that breaks off is started again from the beginning.

        Args:
            path: The file's path below ``url``.
            consume: Called with the content, in chunks; called again at each attempt.

        Raises:
            RecordMissingError: The file does not exist.
        """
        from requests.exceptions import ChunkedEncodingError

        with self._reached():
            for _ in range(_ATTEMPTS - 1):
                with suppress(ChunkedEncodingError):
                    return self._got(path, consume)
            return self._got(path, consume)

    def _got(self, path: str, consume: Callable[[Iterator[bytes]], T]) -> T:
        with self._session.get(self._address(path), stream=True, timeout=_TIMEOUT) as answer:
            if answer.status_code == HTTPStatus.NOT_FOUND:
                raise RecordMissingError(f"the repository {self.url} has no {path}")
            if answer.status_code != HTTPStatus.OK:
                raise self._refused(answer, f"read {path}")
            return consume(answer.iter_content(_CHUNK))

    def _head(self, path: str) -> Response | None:
        """Request a file's headers; None if it does not exist."""
        with self._reached():
            answer = self._session.head(self._address(path), timeout=_TIMEOUT, allow_redirects=True)
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return None
        if answer.status_code != HTTPStatus.OK:
            raise self._refused(answer, f"read {path}")
        return answer

    def _holds(self, path: str, size: int, digest: str) -> bool:
        """Whether a file has this content: by the server's checksum, or else by reading it."""
        if (answer := self._head(path)) is None:
            return False
        if answer.headers.get("Content-Length", str(size)) != str(size):
            return False
        if checksum := answer.headers.get("X-Checksum-Sha256"):  # computed by Artifactory
            return f"{SHA256}{checksum.lower()}" == digest
        return self._get(path, files.digest_of) == digest

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Within the block, raise ``StoreError`` for network errors."""
        import requests

        try:
            yield
        except requests.RequestException as error:
            raise StoreError(
                f"the artifact repository {self.url} can't be reached: "
                f"{' '.join(str(error).split())}"
            ) from error

    def _lost(self, answer: Response, path: str) -> StoreError | UnavailableError:
        """The error for an upload after which the file is missing or incomplete."""
        if answer.status_code < HTTPStatus.MULTIPLE_CHOICES:
            return StoreError(f"{path} arrived incomplete in {self.url}. Push it again")
        return self._refused(answer, f"write {path}")

    def _refused(self, answer: Response, what: str) -> StoreError | UnavailableError:
        """The error for an unexpected status, without credentials or signatures."""
        said = f"can't {what}: the artifact repository {self.url} answered {answer.status_code}"
        said = f"{said} {answer.reason or ''}".rstrip()
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            return UnavailableError(
                f"{said}. Set {USER} and {PASSWORD}, or {TOKEN}, or write them into ~/.netrc"
            )
        if answer.status_code == HTTPStatus.FORBIDDEN:
            return StoreError(f"{said}. Check what these credentials allow{_words(answer)}")
        if answer.is_redirect:
            address = urlsplit(answer.headers["Location"])  # its query may hold a signature
            where = f"{address.scheme}://{address.netloc}{address.path}"
            return StoreError(f"{said}: it has moved to {where}. Set `repository` to that")
        return StoreError(f"{said}{_words(answer)}")


def _authorization(environ: Mapping[str, str]) -> Callable[[Any], Any] | None:
    """The ``auth`` for requests; if it is None, requests reads ~/.netrc.

    Raises:
        UnavailableError: A user is set without a password.
    """
    from requests.auth import HTTPBasicAuth

    if token := environ.get(TOKEN):
        return _Bearer(token)
    if not (user := environ.get(USER)):
        return None
    if PASSWORD not in environ:
        raise UnavailableError(f"{USER} is set, but {PASSWORD} is not: set both, or {TOKEN}")
    return HTTPBasicAuth(user.encode(), environ[PASSWORD].encode())  # as bytes: in UTF-8


class _Bearer:
    """Adds a bearer token. As ``auth``, it takes precedence over ~/.netrc."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _words(answer: Response) -> str:
    """The message in a response's body, with ``: `` before it; empty unless text or JSON."""
    if not answer.headers.get("Content-Type", "").startswith(("text/plain", "application/json")):
        return ""
    return f": {' '.join(answer.text.split())[:200]}"
