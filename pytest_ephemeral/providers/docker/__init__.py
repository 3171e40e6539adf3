"""The docker provider: images and environments are those of a container engine."""

from pytest_ephemeral.providers.docker.provider import DockerProvider

__all__ = ["DockerProvider"]
