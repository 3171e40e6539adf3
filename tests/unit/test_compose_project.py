"""A Compose file made into one environment's: baked images, our labels, no ports but ours."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.models import Endpoint
from pytest_ephemeral.providers.compose import exposed, mounts, project
from pytest_ephemeral.providers.compose.command import parse
from pytest_ephemeral.providers.compose.tables import ComposeTemplate, Place, ServicePort
from pytest_ephemeral.providers.docker.ports import Published

#: What the engine calls the baked image.
IMAGE = "sha256:1"

FILE = """
name: theirs
version: "3.8"
services:
  web:
    build: {context: /there}
    container_name: web
    environment: {KEY: "a$$b-s3cret", NONE: }
    labels: ["theirs=yes"]
    ports: ["8080:80", {published: 1, target: 9000}]
    restart: always
  db:
    image: postgres:16
    expose: ["5432"]
    profiles: [full]
networks:
  default: {name: theirs_default}
  shared: {external: true, name: shared}
volumes:
  data: {name: theirs_data}
"""


def template(**keys: Any) -> ComposeTemplate:
    given = {
        "service": "web",
        "port": 80,
        "replaced": {"web": "shop"},
        "profiles": ["full"],
        "allow_external": True,
        **keys,
    }
    return ComposeTemplate(name="t", file="compose.yaml", **given)


def prepared(**keys: Any) -> dict[str, Any]:
    return project.prepare(
        parse(FILE),
        template(**keys),
        {"shop": IMAGE},
        labels={"ours": "yes"},
        secrets=["s3cret"],
        published=published_at(49160, **keys),
    )


def published_at(first: int, file: project.File | None = None, **keys: Any) -> Published:
    """As if the engine had these ports free, one after the other."""
    asked = template(**keys)
    places = asked.service_ports()
    counts = {name: project.replicas(file or {}, asked, at.service) for name, at in places.items()}
    inside = {name: at.port for name, at in places.items()}
    endpoints = {
        name: Endpoint(host="127.0.0.1", port=first + number) for number, name in enumerate(inside)
    }
    return Published("127.0.0.1", endpoints, inside, counts)


def test_services_get_the_baked_image_and_one_port() -> None:
    """The baked image instead of a build; only the endpoint's port; what else is said stays."""
    web = prepared()["services"]["web"]
    assert web["image"] == IMAGE
    assert web["ports"] == ["127.0.0.1:49160:80/tcp"]
    assert web["restart"] == "always"
    assert web["labels"]["theirs"] == web["labels"]["ours"] == "yes"
    assert not {"build", "container_name"} & web.keys()


def test_a_label_records_the_position_of_each_secret() -> None:
    """By their place in the value that the container will see."""
    assert prepared()["services"]["web"]["labels"]["pytest-ephemeral.secrets"] == "KEY=4-0"


def test_services_without_the_secret_have_no_trace_of_it() -> None:
    """Neither its length nor a digest: what hides it in the logs is the service that has it."""
    assert "s3cret" not in str(prepared()["services"]["db"])
    assert prepared()["services"]["db"]["labels"]["pytest-ephemeral.secrets"] == ""


def test_fixed_network_and_volume_names_are_removed() -> None:
    """But for what is someone else's: that is neither named nor labelled."""
    made = prepared()
    assert "name" not in made
    assert made["networks"] == {
        "default": {"labels": {"ours": "yes"}},
        "shared": {"external": True, "name": "shared"},
    }
    assert made["volumes"] == {"data": {"labels": {"ours": "yes"}}}


def test_only_services_with_endpoints_publish_ports() -> None:
    """Unless an endpoint is theirs."""
    assert prepared()["services"]["db"]["ports"] == []
    further = {"db": Place(service="db", port=5432)}
    assert prepared(further=further)["services"]["db"]["ports"] == ["127.0.0.1:49161:5432/tcp"]


def test_services_of_inactive_profiles_are_left_out() -> None:
    """Is not brought up; one that is asked for says which profile it needs."""
    assert set(prepared(profiles=[])["services"]) == {"web"}
    with pytest.raises(ConfigurationError, match="needs a profile: add one of full"):
        prepared(profiles=[], further={"db": Place(service="db", port=1)})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"service": "wbe"}, r"t\.service: there is no service 'wbe'.*'web'"),
        ({"replaced": {"wbe": "shop"}}, r"t\.images\.wbe: there is no service"),
        ({"further": {"x": Place(service="cache", port=1)}}, r"t\.endpoints\.x: there is no"),
        ({"scale": {"wbe": 2}}, r"t\.scale\.wbe: there is no service 'wbe'.*'web'"),
        ({"profiles": ["ful"]}, r"t\.profiles: no service .* has the profile 'ful'.*'full'"),
        ({"replaced": {}}, r"'web' of compose.yaml has build: .*images = \{ web = "),
    ],
)
def test_settings_that_do_not_match_the_file_are_reported(keys: dict[str, Any], said: str) -> None:
    """The key, and what would be right."""
    with pytest.raises(ConfigurationError, match=said):
        prepared(**keys)


def test_list_ports_reads_every_notation() -> None:
    """However they are written."""
    service = {"expose": ["1", "2/tcp"], "ports": ["8080:3", "127.0.0.1::4/tcp", {"target": 5}, 6]}
    assert exposed.list_ports(service) == ["1", "2", "3", "4", "5", "6"]


def test_endpoints_map_to_services_and_ports() -> None:
    """The URL's first, with the services they are of."""
    made = template(further={"db": Place(service="db", port=5432)})
    assert made.service_ports() == {"http": ServicePort("web", 80), "db": ServicePort("db", 5432)}
    assert made.endpoints() == {"http": 80, "db": 5432}
    assert made.images() == ["shop"]


def test_duplicate_endpoint_names_are_refused() -> None:
    """One of them could not be reached."""
    with pytest.raises(ValueError, match="'http' is named twice"):
        template(further={"http": Place(service="db", port=1)}).check()


# -- a file's own meaning --------------------------------------------------------------------------


def changed(text: str, **keys: Any) -> dict[str, Any]:
    """What a file of one service ``web`` and whatever else becomes."""
    keys = {"replaced": {}, "profiles": [], **keys}
    return project.prepare(
        parse(text),
        template(**keys),
        {"shop": IMAGE},
        labels={},
        secrets=[],
        published=published_at(49160, parse(text), **keys),
    )


@pytest.mark.parametrize(
    ("networks", "aliases"),
    [
        ("", {"default": ["shop-web"]}),
        ("networks: [back]", {"back": ["shop-web"]}),
        ("networks: {back: {aliases: [other]}}", {"back": ["other", "shop-web"]}),
    ],
)
def test_container_names_become_network_aliases(
    networks: str, aliases: dict[str, list[str]]
) -> None:
    """Others in the file find it by that; on this machine, nothing is called so."""
    text = f"services: {{web: {{image: x, container_name: shop-web, {networks}}}}}"
    web = changed(f"{text}\nnetworks: {{back: {{}}}}")["services"]["web"]
    assert {name: options["aliases"] for name, options in web["networks"].items()} == aliases
    assert "container_name" not in web


def test_udp_ports_are_recognised() -> None:
    """It is published as what the file says it is."""
    service = {
        "ports": ["5353:53/udp", {"target": 54, "protocol": "udp"}, "55:55"],
        "expose": ["53"],
    }
    assert not exposed.is_udp(service, 53)  # both
    assert exposed.is_udp(service, 54)
    assert not exposed.is_udp(service, 55)


def test_fixed_subnets_are_removed_and_fixed_addresses_refused() -> None:
    """Two environments could not both have it; with a fixed address in it, that is said."""
    text = """
services: {web: {image: x, networks: {back: {%s}}}}
networks: {back: {driver: bridge, ipam: {config: [{subnet: 10.5.0.0/16}]}}}
"""
    assert changed(text % "")["networks"]["back"] == {"driver": "bridge", "labels": {}}
    with pytest.raises(ConfigurationError, match=r"'web' the address 10\.5\.0\.9 in it"):
        changed(text % "ipv4_address: 10.5.0.9")


@pytest.mark.parametrize(
    "volume",
    [
        "'.:/code'",
        "'/src:/code:ro'",
        "{type: bind, source: /src, target: /code}",
        "'~/src:/code'",
        "'bound:/code'",
        "'served:/code'",
    ],
)
def test_mounts_over_a_baked_image_are_refused(volume: str) -> None:
    """Tests would not run what was baked; another service's image is its own business."""
    text = f"services: {{web: {{image: x, volumes: [data:/data, {volume}]}}}}\n"
    text += "volumes: {data: {driver_opts: {type: tmpfs, device: tmpfs}}, "
    text += "bound: {driver_opts: {type: none, o: bind, device: /src}}, "
    text += "served: {driver_opts: {type: nfs, o: 'addr=10.0.0.1,rw', device: ':/src'}}}"
    changed(text)
    with pytest.raises(ConfigurationError, match=r"over its /code.*allow-mounts = true"):
        changed(text, replaced={"web": "shop"})
    made = changed(text, replaced={"web": "shop"}, allow_mounts=True)
    assert len(made["services"]["web"]["volumes"]) == 2


def test_list_writable_finds_volumes_and_host_folders() -> None:
    """A folder, however it is mounted; what is mounted read-only is not written to."""
    text = """
    services: {web: {volumes: [data:/a, "/src:/b", "/ro:/c:ro", bound:/d]}}
    volumes: {data: , bound: {driver_opts: {type: none, o: bind, device: /dev-src}}}
    """
    file = parse(text)
    found = mounts.list_writable(file["services"]["web"], file["volumes"])
    assert list(found) == [("data", False), ("/src", True), ("/dev-src", True)]


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
    """Networks and volumes that are external; unless the user says that they may."""
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
    """All environments would share it; unless the user says that they may."""
    text = f"services: {{web: {{image: x}}, aside: {{image: x, {key}}}}}"
    with pytest.raises(ConfigurationError, match=r"'aside' has .*theirs.*allow-external"):
        changed(text, allow_external=False)
    changed(text)


@pytest.mark.parametrize("mode", ["none", "host", "service:web", "slirp4netns:cidr=10.9.8.0/24"])
def test_other_network_modes_are_kept(mode: str) -> None:
    """Nor no network, nor that of another service."""
    text = f"services: {{web: {{image: x}}, aside: {{image: x, network_mode: '{mode}'}}}}"
    assert changed(text, allow_external=False)["services"]["aside"]["network_mode"] == mode


@pytest.mark.parametrize(("key", "value"), [("provider", "{type: x}"), ("models", "[x]")])
def test_provider_and_models_keys_are_refused(key: str, value: str) -> None:
    """Nothing of it would have our labels, so nothing would remove it."""
    with pytest.raises(ConfigurationError, match=rf"'aside' of \S+ has {key}, .*would outlive"):
        changed(f"services: {{web: {{image: x}}, aside: {{image: x, {key}: {value}}}}}")


def test_unused_external_resources_are_allowed() -> None:
    """Nor what a service without networks of its own would have."""
    text = (
        f"services: {{web: {{image: x, networks: [own]}}}}\n"
        f"networks: {{own: , default: {{{EXTERNAL}}}}}\nvolumes: {{v: {{{EXTERNAL}}}}}"
    )
    changed(text, allow_external=False)


def test_fixed_bridge_interface_names_are_removed() -> None:
    """Two environments could not both have it, so the engine names it."""
    name = "com.docker.network.bridge.name"
    made = changed(
        "services: {web: {image: x}}\n"
        f"networks: {{default: {{driver_opts: {{{name}: br0, {name[:-4]}.mtu: 1400}}}}}}"
    )
    assert made["networks"]["default"]["driver_opts"] == {f"{name[:-4]}.mtu": 1400}


def test_each_replica_gets_its_own_port() -> None:
    """Each has one of as many ports, and another environment none of these."""
    text = "services: {web: {image: x, deploy: {replicas: 2}}}"
    assert changed(text)["services"]["web"]["ports"] == ["127.0.0.1:49160-49161:80/tcp"]
    assert changed(text, scale={"web": 1})["services"]["web"]["ports"] == ["127.0.0.1:49160:80/tcp"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"type": "none", "o": "bind", "device": "/srv"}, "bound to /srv of this machine"),
        ({"type": "nfs", "device": ":/export"}, "bound to :/export of a file server"),
        ({"type": "cifs", "device": "//nas/tea"}, "bound to //nas/tea of a file server"),
        ({"type": "tmpfs", "device": "tmpfs"}, ""),
    ],
)
def test_rollback_refuses_writable_volumes_of_host_folders(
    options: dict[str, str], told: str
) -> None:
    """Refused with the folder's name, unless it can only be read."""
    template = ComposeTemplate(name="shop", file="compose.yaml", service="web", port=80)
    services = {"web": {"volumes": ["data:/data"]}, "reader": {"volumes": ["data:/data:ro"]}}
    file = {"services": services, "volumes": {"data": {"driver_opts": options}}}
    mounts.check_state(file, template, {"reader": services["reader"]})
    if not told:
        mounts.check_state(file, template, services)
        return
    with pytest.raises(ConfigurationError, match=f"the service web is {told}"):
        mounts.check_state(file, template, services)
