"""Compose files that use resources outside of their project."""

from __future__ import annotations

import pytest

from pytest_ephemeral.errors import ConfigurationError
from support.compose_services import changed

EXTERNAL = "external: true, name: theirs"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"web: {{image: x, networks: [n]}}}}\nnetworks: {{n: {{{EXTERNAL}}}}}", "network 'n'"),
        (f"web: {{image: x}}}}\nnetworks: {{default: {{{EXTERNAL}}}}}", "network 'default'"),
        (
            (
                "web: {image: x}, db: {image: x, volumes: ['v:/data']}}\n"
                "volumes: {v: {external: {name: theirs}}}"
            ),
            "volume 'v'",
        ),
        (
            (
                "web: {image: x, volumes: [{type: volume, source: v, target: /data}]}}\n"
                f"volumes: {{v: {{{EXTERNAL}}}}}"
            ),
            "volume 'v'",
        ),
    ],
)
def test_external_networks_and_volumes_are_refused(text: str, said: str) -> None:
    """All environments would share them; ``allow-external = true`` permits it."""
    with pytest.raises(ConfigurationError, match=f"uses the {said}.*allow-external = true"):
        changed(f"services: {{{text}", allow_external=False)
    changed(f"services: {{{text}")


@pytest.mark.parametrize(
    "key",
    [
        "network_mode: 'container:theirs'",
        "ipc: 'container:theirs'",
        "pid: 'container:theirs'",
        "volumes_from: ['container:theirs:ro']",
        "external_links: [theirs]",
        "network_mode: theirs",
        "network_mode: theirs_default",
    ],
)
def test_resources_of_other_projects_are_refused(key: str) -> None:
    """All environments would share them; ``allow-external = true`` permits it."""
    text = f"services: {{web: {{image: x}}, aside: {{image: x, {key}}}}}"
    with pytest.raises(ConfigurationError, match=r"'aside' has .*theirs.*allow-external"):
        changed(text, allow_external=False)
    changed(text)


@pytest.mark.parametrize("mode", ["none", "host", "service:web", "slirp4netns:cidr=10.9.8.0/24"])
def test_other_network_modes_are_kept(mode: str) -> None:
    """None of these modes refers to another project."""
    text = f"services: {{web: {{image: x}}, aside: {{image: x, network_mode: '{mode}'}}}}"
    assert changed(text, allow_external=False)["services"]["aside"]["network_mode"] == mode


@pytest.mark.parametrize(("key", "value"), [("provider", "{type: x}"), ("models", "[x]")])
def test_provider_and_models_keys_are_refused(key: str, value: str) -> None:
    """What they create would lack our labels, and so would never be removed."""
    with pytest.raises(ConfigurationError, match=rf"'aside' of \S+ has {key}, .*would outlive"):
        changed(f"services: {{web: {{image: x}}, aside: {{image: x, {key}: {value}}}}}")


def test_unused_external_resources_are_allowed() -> None:
    """No service uses the default network if all have networks of their own."""
    text = (
        f"services: {{web: {{image: x, networks: [own]}}}}\n"
        f"networks: {{own: , default: {{{EXTERNAL}}}}}\nvolumes: {{v: {{{EXTERNAL}}}}}"
    )
    changed(text, allow_external=False)


def test_fixed_bridge_interface_names_are_removed() -> None:
    """Two environments can't use the same name, so the engine chooses one."""
    name = "com.docker.network.bridge.name"
    made = changed(
        "services: {web: {image: x}}\n"
        f"networks: {{default: {{driver_opts: {{{name}: br0, {name[:-4]}.mtu: 1400}}}}}}"
    )
    assert made["networks"]["default"]["driver_opts"] == {f"{name[:-4]}.mtu": 1400}
