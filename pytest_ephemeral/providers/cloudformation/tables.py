"""The keys that templates of the cloudformation provider have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec

from pytest_ephemeral import interpolation
from pytest_ephemeral.tables import Name, Template

_OUTPUT: Final = re.compile(r"\{output:([A-Za-z0-9]+)\}")

Capability = Literal["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"]
Url = Annotated[str, msgspec.Meta(pattern=r"^(https?://|\{output:)")]


class StackTemplate(Template, frozen=True, kw_only=True):
    """What a CloudFormation template describes. ``env`` are parameters too.

    Attributes:
        file: The CloudFormation template.
        parameters: Of the stack. ``{image:NAME}`` is an AMI's id, ``{env:NAME}`` a variable.
        url: Where it answers: ``{output:NAME}`` is an output of the stack.
        further: Called ``endpoints``: where else it answers, by name.
        region: Where; by default boto3's.
        capabilities: What the template may make: ``CAPABILITY_IAM`` and such.
        role_arn: The role that CloudFormation acts with.
        bucket: An S3 bucket in the stack's region, for a file of more than 51,200 bytes, and for
            what files name by local paths: nested stacks, code, definitions.
    """

    provider: str = "cloudformation"
    file: str
    parameters: dict[str, str] = msgspec.field(default_factory=dict)
    url: Url
    further: dict[Name, Url] = msgspec.field(name="endpoints", default_factory=dict)
    region: str | None = None
    capabilities: list[Capability] = msgspec.field(default_factory=list)
    role_arn: str | None = None
    bucket: str | None = None

    def check(self) -> None:
        """Its outputs say where it answers, and its parameters which images it runs."""
        if self.port is not None or self.ports:
            raise ValueError('the port belongs in its url: url = "http://{output:Address}:8080"')
        if self.image is not None:
            raise ValueError(
                'it has image: name its parameter, parameters = { X = "{image:NAME}" }'
            )

    def urls(self) -> dict[str, str]:
        """Where it answers, the URL's first; outputs not filled in."""
        return {"http": self.url, **self.further}

    def endpoints(self) -> dict[str, int]:
        """Its endpoints' names. What their ports are, only the stack's outputs say."""
        return dict.fromkeys(self.urls(), 0)

    def images(self) -> Sequence[str]:
        """The images that its parameters name."""
        found = (
            name
            for value in self.parameters.values()
            for name in interpolation.references(value, "image")
        )
        return list(dict.fromkeys(found))


def outputs_in(text: str) -> list[str]:
    """The outputs that a URL names."""
    return _OUTPUT.findall(text)


def with_outputs(text: str, outputs: dict[str, str]) -> str:
    """A URL with the stack's outputs in it."""
    return _OUTPUT.sub(lambda found: outputs[found[1]], text)
