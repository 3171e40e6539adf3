"""The qemu provider: QEMU machines on this machine, without root and without a bridge."""

from pytest_ephemeral.providers.qemu.provider import QemuProvider

__all__ = ["QemuProvider"]
