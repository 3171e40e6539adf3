"""The compose provider: each environment is a project of a Compose file."""

from pytest_ephemeral.providers.compose.provider import ComposeProvider

__all__ = ["ComposeProvider"]
