"""Checks that AWS makes before a launch and moto does not, and details that moto leaves out."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from aws.wire import Request

USER_DATA = 16384
#: Tag keys that the metadata service can show: each becomes a part of a path.
SHOWN = re.compile(r"[\w+\-=.,:@]{1,128}")


def refusal(request: Request, backend: Any, profiles: dict[str, int]) -> tuple[str, str] | None:
    """Return the error with which AWS would refuse this launch, or None.

    Args:
        request: A ``RunInstances`` call.
        backend: moto's EC2 backend of the region.
        profiles: Instance profiles, and how many more launches EC2 refuses because each is new.
    """
    form = request.form
    image = backend.amis.get(form["ImageId"])
    if image is None:
        return "InvalidAMIID.NotFound", f"The image id '[{form['ImageId']}]' does not exist"
    if image.state != "available":
        return "InvalidAMIID.Unavailable", f"The image ID '{image.id}' is {image.state}"
    if not 1 <= int(form["MinCount"]) <= int(form["MaxCount"]):
        return "InvalidParameterValue", "The number of instances is not valid"
    profile = form.get("IamInstanceProfile.Name")
    if profile and profiles.get(profile) != 0:
        profiles[profile] = profiles.get(profile, 0) - 1
        said = f"Value ({profile}) for parameter iamInstanceProfile.name is invalid. "
        return "InvalidParameterValue", f"{said}Invalid IAM Instance Profile name"
    return _unknown(form, backend) or _ill_formed(request)


def _unknown(form: Mapping[str, str], backend: Any) -> tuple[str, str] | None:
    """Return the error for a name of a resource that does not exist."""
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    if (kind := form.get("InstanceType", "m1.small")) not in INSTANCE_TYPES:
        return "InvalidParameterValue", f"Invalid value '{kind}' for InstanceType."
    if (key := form.get("KeyName")) and key not in backend.key_pairs:
        return "InvalidKeyPair.NotFound", f"The key pair '{key}' does not exist"
    subnet = form.get("SubnetId") or form.get("NetworkInterface.1.SubnetId")
    known = {id: one for zone in backend.subnets.values() for id, one in zone.items()}
    if subnet and subnet not in known:
        return "InvalidSubnetID.NotFound", f"The subnet ID '{subnet}' does not exist"
    for name, group in form.items():
        if re.fullmatch(r"(NetworkInterface\.1\.)?SecurityGroupId\.\d+", name):
            found = backend.get_security_group_from_id(group)
            if found is None:
                return "InvalidGroup.NotFound", f"The security group '{group}' does not exist"
            if subnet and found.vpc_id != known[subnet].vpc_id:
                return "InvalidParameter", f"{group} and {subnet} belong to different networks."
    return None


def _ill_formed(request: Request) -> tuple[str, str] | None:
    """Return the error for parameters that can't be combined, or that exceed a limit."""
    form = request.form
    if "NetworkInterface.1.DeviceIndex" in form and "SubnetId" in form:
        return "InvalidParameterCombination", "Network interfaces and an instance-level subnet ID"
    if len(base64.b64decode(form.get("UserData", ""))) > USER_DATA:
        return "InvalidParameterValue", f"User data is limited to {USER_DATA} bytes"
    for key, value in request.tags("instance").items():
        shown = form.get("MetadataOptions.InstanceMetadataTags") == "enabled"
        if key.startswith("aws:") or len(value) > 256 or (shown and not SHOWN.fullmatch(key)):
            return "InvalidParameterValue", f"Tag {key} = {value} is not valid"
    return None


def complete(request: Request, instance: Any, backend: Any) -> None:
    """Add what moto leaves out: tags of interfaces and volumes, and the volumes of the AMI."""
    volumes, root = instance.block_device_mapping, instance.root_device_name
    if "/dev/sda1" in volumes:  # moto's default name of the root device
        volumes[root] = volumes.pop("/dev/sda1")
    elif root not in volumes:
        instance.add_block_device(15, root, None, False, True, None, "gp3")
    for interface in instance.nics.values():
        interface.add_tags(request.tags("network-interface"))
        interface.public_ip = None  # assigned only when the instance runs
    said = {text for name, text in request.form.items() if name.endswith(".DeviceName")}
    for device, size in getattr(backend.amis[instance.image_id], "kept_volumes", []):
        if device not in said:
            instance.add_block_device(size, device, None, False, False, None, "gp3")
    for volume in volumes.values():
        backend.volumes[volume.volume_id].add_tags(request.tags("volume"))


def address(instance: Any) -> None:
    """Assign a public address, also a loopback one, to a running instance that requested it."""
    interface = instance.nics[0]
    if interface.public_ip_auto_assign:
        interface.public_ip = interface.private_ip_address.replace("127.77.", "127.78.")


def mappings(image: Any) -> list[dict[str, Any]]:
    """Return an AMI's volumes: the root, deleted with its instance, and those that are kept."""
    root = {
        "SnapshotId": image.ebs_snapshot.id,
        "VolumeSize": 15,
        "DeleteOnTermination": True,
        "VolumeType": "gp3",
    }
    return [
        {"DeviceName": image.root_device_name, "Ebs": root},
        *(
            {"DeviceName": name, "Ebs": {"VolumeSize": size, "DeleteOnTermination": False}}
            for name, size in getattr(image, "kept_volumes", [])
        ),
    ]
