"""A stricter simulation of Route 53 than moto's: it refuses what AWS refuses.

moto 5.2 accepts a ``DELETE`` with any earlier value of the record, a ``CREATE`` of an existing
record, and a CNAME at the zone's own name, and reports INSYNC for every change. AWS does not:
https://docs.aws.amazon.com/Route53/latest/APIReference/API_ChangeResourceRecordSets.html
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

from botocore.exceptions import ClientError

ADDRESS_KINDS = {"A", "AAAA", "CNAME"}


class StrictRoute53:
    """The methods of boto3's client that promotion uses, for one zone."""

    def __init__(self, zone: str, *, pending: int = 2) -> None:
        self.zone = f"{zone}."
        self.sets: list[dict[str, Any]] = [
            {"Name": self.zone, "Type": "SOA", "TTL": 900, "ResourceRecords": [{"Value": "ns1"}]}
        ]
        self.batches: list[list[str]] = []
        #: How often ``get_change`` answers PENDING before INSYNC.
        self.pending = pending
        #: The errors of the next requests.
        self.failing: list[str] = []
        self._changes: dict[str, int] = {}
        self._numbers = itertools.count(1)

    def list_hosted_zones_by_name(self, *, DNSName: str) -> Any:  # noqa: N803
        return {"HostedZones": [{"Id": "/hostedzone/Z1", "Name": self.zone}]}

    def list_resource_record_sets(self, *, HostedZoneId: str, **start: str) -> Any:  # noqa: N803
        """List records from a name on, in the service's order, two on a page."""
        self._fail("ListResourceRecordSets")
        ordered = sorted(self.sets, key=_place)
        begin = (
            start["StartRecordName"].rstrip(".") + ".",
            start.get("StartRecordType", ""),
            start.get("StartRecordIdentifier", ""),
        )
        following = [one for one in ordered if _place(one) >= begin]
        page = {"ResourceRecordSets": copy.deepcopy(following[:2]), "IsTruncated": False}
        if len(following) > 2:
            after = following[2]
            page |= {
                "IsTruncated": True,
                "NextRecordName": after["Name"],
                "NextRecordType": after["Type"],
            }
            if "SetIdentifier" in after:
                page["NextRecordIdentifier"] = after["SetIdentifier"]
        return page

    def change_resource_record_sets(self, *, HostedZoneId: str, ChangeBatch: Any) -> Any:  # noqa: N803
        """Apply all changes, or none."""
        self._fail("ChangeResourceRecordSets")
        after = copy.deepcopy(self.sets)
        for change in ChangeBatch["Changes"]:
            self._apply(after, change["Action"], change["ResourceRecordSet"])
        self.sets = after
        self.batches.append([change["Action"] for change in ChangeBatch["Changes"]])
        id = f"/change/C{next(self._numbers)}"
        self._changes[id] = self.pending
        return {"ChangeInfo": {"Id": id, "Status": "PENDING"}}

    def get_change(self, *, Id: str) -> Any:  # noqa: N803
        self._fail("GetChange")
        if Id not in self._changes:
            raise _error("NoSuchChange", f"there is no {Id}", "GetChange")
        self._changes[Id] -= 1
        return {
            "ChangeInfo": {"Id": Id, "Status": "PENDING" if self._changes[Id] > 0 else "INSYNC"}
        }

    def _fail(self, operation: str) -> None:
        if self.failing:
            raise _error(self.failing.pop(0), "set by the test", operation)

    def _apply(self, sets: list[dict[str, Any]], action: str, wanted: dict[str, Any]) -> None:
        what = f"[name='{wanted['Name']}', type='{wanted['Type']}']"
        if action == "DELETE":
            if wanted not in sets:
                raise _batch(
                    f"Tried to delete resource record set {what} but the values provided do not "
                    "match the current values"
                )
            sets.remove(wanted)
            return
        assert action == "CREATE", f"{action} would not be a compare-and-swap"
        same_name = [one for one in sets if one["Name"] == wanted["Name"]]
        if any(_place(one) == _place(wanted) for one in same_name):
            raise _batch(f"Tried to create resource record set {what} but it already exists")
        self._check_neighbours(same_name, wanted, what)
        sets.append(copy.deepcopy(wanted))

    def _check_neighbours(self, same_name: list[Any], wanted: dict[str, Any], what: str) -> None:
        if wanted["Type"] == "CNAME" and wanted["Name"] == self.zone:
            raise _batch(f"RRSet of type CNAME with DNS name {wanted['Name']} is not permitted")
        kinds = {one["Type"] for one in same_name} & ADDRESS_KINDS
        if "CNAME" in kinds ^ {wanted["Type"]} and kinds | {wanted["Type"]} != {"CNAME"} and kinds:
            raise _batch(f"{what}: a CNAME may stand beside nothing else")
        weighted = {"SetIdentifier" in one for one in same_name if one["Type"] == wanted["Type"]}
        if weighted and weighted != {"SetIdentifier" in wanted}:
            raise _batch(f"{what}: simple and weighted records can't stand beside each other")


def _place(one: dict[str, Any]) -> tuple[str, str, str]:
    return one["Name"], one["Type"], one.get("SetIdentifier", "")


def _batch(message: str) -> ClientError:
    return _error("InvalidChangeBatch", f"[{message}]", "ChangeResourceRecordSets")


def _error(code: str, message: str, operation: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)
