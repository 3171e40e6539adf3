"""The configuration keys of the cloudformation provider's templates."""

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
    """A stack, made from a CloudFormation template. ``env`` sets parameters, too.

    Attributes:
        file: The CloudFormation template.
        parameters: The stack's parameters. ``{image:NAME}`` is an AMI's id, ``{env:NAME}`` an
            environment variable.
        url: The URL of the environment; ``{output:NAME}`` is an output of the stack.
        further: Called ``endpoints``: further URLs, by name.
        region: The region of the stack; by default boto3's own.
        capabilities: The capabilities that CloudFormation requires for the template, such as
            ``CAPABILITY_IAM``.
        role_arn: The ARN of the role that CloudFormation assumes.
        bucket: An S3 bucket in the stack's region. It is needed if the file has more than 51,200
            bytes, or names local paths (nested stacks, code, definitions).
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
        """Refuse ports and ``image``: a stack has its outputs and parameters for them."""
        if self.port is not None or self.ports:
            raise ValueError('the port belongs in its url: url = "http://{output:Address}:8080"')
        if self.image is not None:
            raise ValueError(
                'it has image: name its parameter, parameters = { X = "{image:NAME}" }'
            )

    def urls(self) -> dict[str, str]:
        """Its URLs by name, ``url`` first; outputs are not filled in."""
        return {"http": self.url, **self.further}

    def endpoints(self) -> dict[str, int]:
        """The names of its endpoints. The ports are 0: only the stack's outputs have them."""
        return dict.fromkeys(self.urls(), 0)

    def images(self) -> Sequence[str]:
        """The names of the images in its parameters."""
        found = (
            name
            for value in self.parameters.values()
            for name in interpolation.references(value, "image")
        )
        return list(dict.fromkeys(found))


def outputs_in(text: str) -> list[str]:
    """The names of the outputs in a URL."""
    return _OUTPUT.findall(text)


def with_outputs(text: str, outputs: dict[str, str]) -> str:
    """Fill in the stack's outputs in a URL."""
    return _OUTPUT.sub(lambda found: outputs[found[1]], text)
