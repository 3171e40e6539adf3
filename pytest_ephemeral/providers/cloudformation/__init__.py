"""The cloudformation provider: an environment is a stack."""

from pytest_ephemeral.providers.cloudformation.provider import CloudFormationProvider

__all__ = ["CloudFormationProvider"]
