"""The compose provider: an environment is what a Compose file says."""

from pytest_ephemeral.providers.compose.provider import ComposeProvider

__all__ = ["ComposeProvider"]
