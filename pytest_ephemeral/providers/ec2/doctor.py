"""What the providers on AWS need."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_ephemeral import aws
from pytest_ephemeral.errors import UnavailableError
from pytest_ephemeral.providers import Check


def checks() -> Sequence[Check]:
    """boto3, and credentials that are good: who they are, and in which region."""
    try:
        client = aws.client("sts")
    except ImportError:
        return [Check("boto3", ok=False, detail="not installed", hint=_INSTALL)]
    except UnavailableError as error:
        return [Check("AWS", ok=False, detail=str(error))]
    from botocore.exceptions import ClientError

    try:
        with aws.explained():
            found = client.get_caller_identity()
            region = aws.client("ec2").meta.region_name
    except (UnavailableError, ClientError) as error:
        return [Check("AWS", ok=False, detail=str(error))]
    return [Check("AWS", ok=True, detail=f"{found['Arn']} in {region}")]


_INSTALL = "pip install 'pytest-ephemeral[aws]'"
