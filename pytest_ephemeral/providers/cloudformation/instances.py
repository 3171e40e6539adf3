"""The instances of stacks: which stacks can have instances; find and tag them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from pytest_ephemeral import aws
from pytest_ephemeral.errors import UnavailableError
from pytest_ephemeral.labels import RUN
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.ec2.environments import ENDED, REGION
from pytest_ephemeral.providers.ec2.instance_watcher import Instance, state, watch_region
from pytest_ephemeral.providers.ec2.tags import to_tags

#: In a handle: set if the stack can't have instances, so that EC2 need not be asked.
WITHOUT_INSTANCES: Final = "without-instances"

#: Services whose resources are no instances, and which launch none in the user's account.
_WITHOUT: Final = frozenset(
    {
        *("ApiGateway", "ApiGatewayV2", "AppSync", "CertificateManager", "CloudFront"),
        *("CloudWatch", "Cognito", "DynamoDB", "ECR", "Events", "IAM", "KMS", "Kinesis"),
        *("KinesisFirehose", "Lambda", "Logs", "Pipes", "Route53", "S3", "SNS", "SQS", "SSM"),
        *("Scheduler", "SecretsManager", "StepFunctions"),
    }
)


def can_have(summary: Mapping[str, Any]) -> bool:
    """Whether a stack may have instances, by its template's ``GetTemplateSummary``.

    Nested stacks, transforms and modules may create instances.
    """
    kinds = summary.get("ResourceTypes") or ["unknown"]
    others = [kind for kind in kinds if kind.split("::")[:2] not in [["AWS", s] for s in _WITHOUT]]
    return bool(others or summary.get("DeclaredTransforms"))


def find(environment: Environment) -> list[Instance]:
    """The instances of a stack, as of the last poll; none without permission to list them."""
    if environment.handle.get(WITHOUT_INSTANCES):
        return []
    try:
        return watch_region(environment.handle.get(REGION)).instances(environment)
    except UnavailableError as error:
        if not aws.is_unauthorized(error):
            raise
        return []


def look(environment: Environment) -> None:
    """Poll the instances of a new stack, unless this is not permitted, or EC2 throttles."""
    if environment.handle.get(WITHOUT_INSTANCES):
        return
    watcher = watch_region(environment.handle.get(REGION))
    try:
        aws.poll(watcher.client, partial(watcher.look, [environment.labels[RUN]]))
    except UnavailableError as error:
        if not aws.is_unauthorized(error):
            raise


def retag(environment: Environment, tags: Mapping[str, str]) -> None:
    """Tag the instances directly: their guests read the tags, and a stack update takes longer."""
    ids = [str(one["InstanceId"]) for one in find(environment) if state(one) not in ENDED]
    if ids:
        client = watch_region(environment.handle.get(REGION)).client
        client.create_tags(Resources=ids, Tags=to_tags(tags))
