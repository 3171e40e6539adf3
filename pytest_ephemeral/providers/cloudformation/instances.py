"""The instances of stacks: which stacks may have some, and which those are."""

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

#: In a handle: that the stack can't have instances, so EC2 need not be asked about it.
WITHOUT_INSTANCES: Final = "without-instances"

#: Services whose resources are no instances, and launch none in the user's account.
_WITHOUT: Final = frozenset(
    {
        *("ApiGateway", "ApiGatewayV2", "AppSync", "CertificateManager", "CloudFront"),
        *("CloudWatch", "Cognito", "DynamoDB", "ECR", "Events", "IAM", "KMS", "Kinesis"),
        *("KinesisFirehose", "Lambda", "Logs", "Pipes", "Route53", "S3", "SNS", "SQS", "SSM"),
        *("Scheduler", "SecretsManager", "StepFunctions"),
    }
)


def can_have(summary: Mapping[str, Any]) -> bool:
    """Whether a stack may have instances, by what ``GetTemplateSummary`` says of its file.

    Nested stacks may, as may what transforms and modules make.
    """
    kinds = summary.get("ResourceTypes") or ["unknown"]
    others = [kind for kind in kinds if kind.split("::")[:2] not in [["AWS", s] for s in _WITHOUT]]
    return bool(others or summary.get("DeclaredTransforms"))


def find(environment: Environment) -> list[Instance]:
    """The instances of a stack, as they were last seen; none where EC2 may not be asked."""
    if environment.handle.get(WITHOUT_INSTANCES):
        return []
    try:
        return watch_region(environment.handle.get(REGION)).instances(environment)
    except UnavailableError as error:
        if not aws.is_unauthorized(error):
            raise
        return []


def look(environment: Environment) -> None:
    """Have the instances of a new stack seen, unless EC2 may not be asked, or is too busy."""
    if environment.handle.get(WITHOUT_INSTANCES):
        return
    watcher = watch_region(environment.handle.get(REGION))
    try:
        aws.poll(watcher.client, partial(watcher.look, [environment.labels[RUN]]))
    except UnavailableError as error:
        if not aws.is_unauthorized(error):
            raise


def retag(environment: Environment, tags: Mapping[str, str]) -> None:
    """Tag them at once, as their guests look at their tags; the stack takes its time."""
    ids = [str(one["InstanceId"]) for one in find(environment) if state(one) not in ENDED]
    if ids:
        client = watch_region(environment.handle.get(REGION)).client
        client.create_tags(Resources=ids, Tags=to_tags(tags))
