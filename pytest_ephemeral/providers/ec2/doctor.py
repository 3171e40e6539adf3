"""The checks of ``pytest-ephemeral doctor`` for the providers on AWS."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_ephemeral import aws
from pytest_ephemeral.errors import UnavailableError
from pytest_ephemeral.providers.protocol import Check


def checks() -> Sequence[Check]:
    """Check that boto3 is installed and that the credentials are valid."""
    try:
        region = aws.client("ec2").meta.region_name
        who = aws.identity()["Arn"]
    except ImportError:
        return [Check("boto3", ok=False, detail="not installed", hint=_INSTALL)]
    except UnavailableError as error:
        return [Check("AWS", ok=False, detail=str(error))]
    return [Check("AWS", ok=True, detail=f"{who} in {region}")]


_INSTALL = "pip install 'pytest-ephemeral[aws]'"
