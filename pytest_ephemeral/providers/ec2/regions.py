"""What both AWS providers share: their resources are spread over regions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from pytest_ephemeral import aws
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.providers.protocol import Owned
from pytest_ephemeral.tables import Recipe, Template

Known = Template | Recipe | Environment | Image


class RegionalProvider(ABC):
    """The parts of ``Provider`` that follow from ``SupportsRegions`` and ``SupportsBulkSweep``."""

    def account(self) -> str:
        """The number of the AWS account that the credentials belong to."""
        return aws.identity()["Account"]

    def regions(self, known: Iterable[Known]) -> Sequence[str]:
        """The regions in which the provider may have resources, boto3's own first.

        STS is called first: if AWS can't be reached, it fails sooner than EC2.
        """
        aws.identity()
        with aws.translate_errors():
            found: list[str | None] = [str(aws.client("ec2").meta.region_name)]
        for one in known:
            found += self._regions_of(one)
        return list(dict.fromkeys(filter(None, found)))

    def list_owned(self) -> Iterator[Owned]:
        """All resources in boto3's own region that have our tags."""
        yield from self.list_owned_in(self.regions(())[0])

    def sweep(self, owned: Owned) -> None:
        """Remove all resources with its id, except those protected from termination."""
        if error := self.sweep_all([owned], lambda _: True).get(owned.id):
            raise error

    @abstractmethod
    def _regions_of(self, one: Known) -> Sequence[str | None]:
        """The regions that a template, recipe, environment or image of this provider names."""

    @abstractmethod
    def list_owned_in(self, region: str) -> Sequence[Owned]:
        """All resources in a region that have our tags."""

    @abstractmethod
    def sweep_all(
        self, owned: Sequence[Owned], still: Callable[[Owned], bool]
    ) -> Mapping[str, EphemeralError | None]:
        """See ``SupportsBulkSweep``."""
