"""A Compose file, changed for one environment: baked images, our labels, only our ports."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.providers.compose import exposed, mounts, project
from pytest_ephemeral.providers.compose.command import parse
from pytest_ephemeral.providers.compose.tables import ComposeTemplate, Place, ServicePort
from support.compose_services import IMAGE, changed, published_at, template

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


def prepared(**keys: Any) -> dict[str, Any]:
    return project.prepare(
        parse(FILE),
        template(**keys),
        {"shop": IMAGE},
        labels={"ours": "yes"},
        secrets=["s3cret"],
        published=published_at(49160, **keys),
    )


def test_services_get_the_baked_image_and_one_port() -> None:
    """The image replaces the build, only the endpoint's port is published, the rest stays."""
    web = prepared()["services"]["web"]
    assert web["image"] == IMAGE
    assert web["ports"] == ["127.0.0.1:49160:80/tcp"]
    assert web["restart"] == "always"
    assert web["labels"]["theirs"] == web["labels"]["ours"] == "yes"
    assert not {"build", "container_name"} & web.keys()


def test_a_label_records_the_position_of_each_secret() -> None:
    """The position is that in the value inside the container, where ``$$`` is ``$``."""
    assert prepared()["services"]["web"]["labels"]["pytest-ephemeral.secrets"] == "KEY=4-0"


def test_services_without_the_secret_have_no_trace_of_it() -> None:
    """Its labels have neither the secret's length nor a digest."""
    assert "s3cret" not in str(prepared()["services"]["db"])
    assert prepared()["services"]["db"]["labels"]["pytest-ephemeral.secrets"] == ""


def test_fixed_network_and_volume_names_are_removed() -> None:
    """External ones keep their names and get no labels."""
    made = prepared()
    assert "name" not in made
    assert made["networks"] == {
        "default": {"labels": {"ours": "yes"}},
        "shared": {"external": True, "name": "shared"},
    }
    assert made["volumes"] == {"data": {"labels": {"ours": "yes"}}}


def test_only_services_with_endpoints_publish_ports() -> None:
    """A service publishes its port only if it has an endpoint."""
    assert prepared()["services"]["db"]["ports"] == []
    further = {"db": Place(service="db", port=5432)}
    assert prepared(further=further)["services"]["db"]["ports"] == ["127.0.0.1:49161:5432/tcp"]


def test_services_of_inactive_profiles_are_left_out() -> None:
    """An endpoint of such a service is an error that names the profile."""
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
    """The error names the key and a valid value."""
    with pytest.raises(ConfigurationError, match=said):
        prepared(**keys)


def test_list_ports_reads_every_notation() -> None:
    """Compose allows strings, numbers and tables, with or without an address or protocol."""
    service = {"expose": ["1", "2/tcp"], "ports": ["8080:3", "127.0.0.1::4/tcp", {"target": 5}, 6]}
    assert exposed.list_ports(service) == ["1", "2", "3", "4", "5", "6"]


def test_endpoints_map_to_services_and_ports() -> None:
    """The URL's endpoint comes first."""
    made = template(further={"db": Place(service="db", port=5432)})
    assert made.service_ports() == {"http": ServicePort("web", 80), "db": ServicePort("db", 5432)}
    assert made.endpoints() == {"http": 80, "db": 5432}
    assert made.images() == ["shop"]


def test_duplicate_endpoint_names_are_refused() -> None:
    """One of them would be unreachable."""
    with pytest.raises(ValueError, match="'http' is named twice"):
        template(further={"http": Place(service="db", port=1)}).check()


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
    """Other services still find it by that name, and two environments do not collide."""
    text = f"services: {{web: {{image: x, container_name: shop-web, {networks}}}}}"
    web = changed(f"{text}\nnetworks: {{back: {{}}}}")["services"]["web"]
    assert {name: options["aliases"] for name, options in web["networks"].items()} == aliases
    assert "container_name" not in web


def test_udp_ports_are_recognised() -> None:
    """A port counts as UDP only if the file declares no TCP port of that number."""
    service = {
        "ports": ["5353:53/udp", {"target": 54, "protocol": "udp"}, "55:55"],
        "expose": ["53"],
    }
    assert not exposed.is_udp(service, 53)  # TCP, too
    assert exposed.is_udp(service, 54)
    assert not exposed.is_udp(service, 55)


def test_fixed_subnets_are_removed_and_fixed_addresses_refused() -> None:
    """Two environments can't use the same subnet, and a fixed address needs it."""
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
    """Tests would not run the baked files; images that are not baked may be covered."""
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
    """Host folders are found in every notation, and read-only mounts are left out."""
    text = """
    services: {web: {volumes: [data:/a, "/src:/b", "/ro:/c:ro", bound:/d]}}
    volumes: {data: , bound: {driver_opts: {type: none, o: bind, device: /dev-src}}}
    """
    file = parse(text)
    found = mounts.list_writable(file["services"]["web"], file["volumes"])
    assert list(found) == [("data", False), ("/src", True), ("/dev-src", True)]


def test_each_replica_gets_its_own_port() -> None:
    """Replicas share a range of host ports, and ``scale`` overrides ``replicas``."""
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
    """The error names the folder; read-only mounts are allowed."""
    template = ComposeTemplate(name="shop", file="compose.yaml", service="web", port=80)
    services = {"web": {"volumes": ["data:/data"]}, "reader": {"volumes": ["data:/data:ro"]}}
    file = {"services": services, "volumes": {"data": {"driver_opts": options}}}
    mounts.check_state(file, template, {"reader": services["reader"]})
    if not told:
        mounts.check_state(file, template, services)
        return
    with pytest.raises(ConfigurationError, match=f"the service web is {told}"):
        mounts.check_state(file, template, services)
