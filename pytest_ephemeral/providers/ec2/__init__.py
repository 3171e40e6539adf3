"""The ec2 provider: AMIs, and instances launched from them."""

from pytest_ephemeral.providers.ec2.provider import Ec2Provider

__all__ = ["Ec2Provider"]
