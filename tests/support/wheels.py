"""Wheels that tests bake images from."""

from support.machines import Machine


def write_wheel(machine: Machine, content: bytes = b"wheel") -> None:
    """Write the wheel that the project of a machine bakes its image from."""
    dist = machine.folder / "dist"
    dist.mkdir(exist_ok=True)
    (dist / "shop-1.4.2-py3-none-any.whl").write_bytes(content)
