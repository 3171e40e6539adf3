"""The signature policy: all images may be used, or only those signed with the configured key."""

from __future__ import annotations

from pathlib import Path

from pytest_ephemeral.errors import ProvenanceError
from pytest_ephemeral.images.catalog import Catalog
from pytest_ephemeral.models import Environment, Image, ImageReference


class SignaturePolicy:
    """The setting ``require-signature``.

    Args:
        key: The file of the public key; None if images need no signature.
        catalog: The catalog.
    """

    def __init__(self, key: Path | None, catalog: Catalog) -> None:
        self._key = key
        self._catalog = catalog

    def check(self, image: Image) -> None:
        """Check that an image is signed, if that is required.

        Raises:
            ProvenanceError: The image is not signed with the required key.
        """
        if self._key is not None:
            from pytest_ephemeral.images import provenance

            provenance.verify(image, self._key)

    def check_environment(self, environment: Environment) -> None:
        """As ``check_reference``, for all images of an environment, which must have one."""
        for reference in environment.images:
            self.check_reference(reference)
        if not environment.images:
            self.check_reference(None)

    def check_reference(self, reference: ImageReference | None) -> None:
        """As ``check``, for the exact content that an environment runs.

        Raises:
            ProvenanceError: The catalog does not have that content, or it is not signed.
        """
        if self._key is None:
            return
        image = None if reference is None else self._catalog.find(reference.name, reference.key)
        if reference is None or image is None or image.digest != reference.digest:
            raise ProvenanceError(
                "`require-signature` is set, and the catalog has no image with the bytes that the "
                "environment runs: bake and sign the image, and launch an environment of it"
            )
        self.check(image)
