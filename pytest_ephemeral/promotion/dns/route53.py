"""The DNS backend ``route53``: a name in a hosted zone of Amazon Route 53.

A change batch is atomic, and a ``DELETE`` in it must match the existing record exactly. So one
batch with ``DELETE`` of the old and ``CREATE`` of the new records is a compare-and-swap:
https://docs.aws.amazon.com/Route53/latest/APIReference/API_ChangeResourceRecordSets.html
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from pytest_ephemeral import aws
from pytest_ephemeral.errors import (
    ConfigurationError,
    DnsError,
    DnsUnavailableError,
    NameChangedError,
    UnavailableError,
)
from pytest_ephemeral.promotion.dns import (
    KINDS,
    DnsRecord,
    check_alias,
    check_zone,
    format_records,
    kind_of,
    normalize_name,
    resolve,
    sort_records,
)
from pytest_ephemeral.tables import Promotion

#: The error codes after which the same request may succeed.
_PASSING: Final = frozenset({"PriorRequestNotComplete", "ServiceUnavailable", "Throttling"})

_LOAD_BALANCERS: Final = ".elb.amazonaws.com"


class Route53:
    """See ``DnsBackend``. Credentials, region and endpoint come from boto3's configuration."""

    def __init__(self, promotion: Promotion, root: Path) -> None:  # noqa: ARG002
        if promotion.zone is None:
            raise ConfigurationError(f"promotion.{promotion.name}: it needs the zone")
        if "." in promotion.zone:
            check_zone(promotion, promotion.zone)
        self.name = normalize_name(promotion.record)
        self.zone = promotion.zone
        self._set = promotion.set_identifier
        self._record_key = f"promotion.{promotion.name}"

    def read(self) -> list[DnsRecord]:
        """See ``DnsBackend``. Of weighted records, only those with ``set-identifier``."""
        sets = self._sets()
        named = {one["SetIdentifier"] for one in sets if "SetIdentifier" in one}
        if self._set is None and named:
            raise ConfigurationError(
                f"{self.name} has several records of one type, with different set identifiers: "
                f"name the one to change, {self._record_key}.set-identifier = one of "
                f"{', '.join(sorted(named))}"
            )
        return sort_records(_record(one) for one in sets if one.get("SetIdentifier") == self._set)

    def records_for(self, host: str, ttl: int, now: Sequence[DnsRecord]) -> list[DnsRecord]:
        """See ``DnsBackend``: an address, an alias for a load balancer, or a CNAME."""
        rest = self._kept(now)
        kind = kind_of(host)
        if kind != "CNAME":
            return [DnsRecord(kind=kind, ttl=ttl, values=[host], rest=rest)]
        if normalize_name(host).endswith(_LOAD_BALANCERS):
            target = {
                "HostedZoneId": self._balancer_zone(normalize_name(host)),
                "DNSName": f"{normalize_name(host)}.",
                "EvaluateTargetHealth": False,
            }
            return [DnsRecord(kind="A", rest={**rest, "AliasTarget": target})]
        check_alias(self.name, self._zone_name, host)
        return [DnsRecord(kind=kind, ttl=ttl, values=[normalize_name(host)], rest=rest)]

    def swap(self, old: Sequence[DnsRecord], new: Sequence[DnsRecord]) -> str:
        """See ``DnsBackend``: one change batch; returns its id."""
        changes = [
            {"Action": action, "ResourceRecordSet": self._written(record)}
            for action, records in (("DELETE", old), ("CREATE", new))
            for record in records
        ]
        try:
            answer = self._call(
                "change_resource_record_sets",
                HostedZoneId=self._zone_id,
                ChangeBatch={"Comment": "pytest-ephemeral", "Changes": changes},
            )
        except _RefusedError as error:
            if error.code != "InvalidChangeBatch":
                raise
            now = self.read()
            if now == sort_records(new) and now != sort_records(old):
                # The response to this batch was lost, and boto3 repeated it: it had succeeded.
                # Another batch that changes nothing has an id to wait for.
                return self.swap(new, new)
            if now == sort_records(old):  # the service rejects the new record
                raise DnsError(str(error)) from None
            raise NameChangedError(
                f"someone else changed {self.name}: it is {format_records(now)} in Route 53, "
                f"expected {format_records(old)}"
            ) from None
        return str(answer["ChangeInfo"]["Id"])

    def find_lagging(self, expected: Sequence[DnsRecord], change: str) -> str:
        """See ``DnsBackend``. Route 53 reports INSYNC when all its servers have a change."""
        if change:
            status = self._call("get_change", Id=change)["ChangeInfo"]["Status"]
            if status != "INSYNC":
                return f"Route 53 reports {status} of change {change.rpartition('/')[2]}"
        now = self.read()
        return "" if now == sort_records(expected) else f"Route 53 reports {format_records(now)}"

    def addresses(self) -> list[str]:
        """See ``DnsBackend``. The system's resolver follows an alias or a CNAME."""
        found: list[str] = []
        for record in self.read():
            if target := record.rest.get("AliasTarget"):
                found += resolve(target["DNSName"])
            for value in record.values:
                found += resolve(value) if record.kind == "CNAME" else [value]
        return list(dict.fromkeys(found))

    # -- requests ----------------------------------------------------------------------------

    @cached_property
    def _client(self) -> Any:
        return self._service("route53")

    def _service(self, name: str) -> Any:
        try:
            return aws.client(name)
        except UnavailableError as error:
            raise DnsError(f"AWS can't be reached: {error}") from error

    def _call(self, operation: str, *, client: Any = None, **arguments: Any) -> Any:
        from botocore.exceptions import ClientError

        try:
            with aws.translate_errors():
                return getattr(client or self._client, operation)(**arguments)
        except ClientError as error:
            raise _refused(error) from error
        except UnavailableError as error:
            kind = DnsUnavailableError if aws.may_pass(error) else DnsError
            raise kind(f"Route 53 can't be reached: {error}") from error

    @cached_property
    def _zone_id(self) -> str:
        if "." not in self.zone:
            return self.zone
        answer = self._call("list_hosted_zones_by_name", DNSName=self.zone)
        found = [
            one
            for one in answer["HostedZones"]
            if _unescape(one["Name"]) == normalize_name(self.zone)
        ]
        if len(found) == 1:
            return str(found[0]["Id"]).rpartition("/")[2]
        ids = ", ".join(one["Id"].rpartition("/")[2] for one in found)
        problem = f"there are several: give the id of one, {ids}" if found else "there is none"
        raise ConfigurationError(f"{self._record_key}.zone: {self.zone} in Route 53: {problem}")

    @cached_property
    def _zone_name(self) -> str:
        if "." in self.zone:
            return self.zone
        return str(self._call("get_hosted_zone", Id=self.zone)["HostedZone"]["Name"])

    def _sets(self) -> list[dict[str, Any]]:
        """All record sets of the name with a type in ``KINDS``."""
        found: list[dict[str, Any]] = []
        start: dict[str, str] = {"StartRecordName": self.name}
        while True:
            page = self._call("list_resource_record_sets", HostedZoneId=self._zone_id, **start)
            sets = page["ResourceRecordSets"]
            found += [one for one in sets if _unescape(one["Name"]) == self.name]
            if not page["IsTruncated"] or _unescape(page["NextRecordName"]) != self.name:
                return [one for one in found if one["Type"] in KINDS]
            start = {
                f"StartRecord{what}": page[f"NextRecord{what}"]
                for what in ("Name", "Type", "Identifier")
                if f"NextRecord{what}" in page
            }

    def _kept(self, now: Sequence[DnsRecord]) -> dict[str, Any]:
        """The fields of a weighted record that must stay the same: its identifier and weight."""
        if self._set is None:
            return {}
        if not now:
            raise DnsError(
                f"{self.name} has no record with the set identifier {self._set!r}, whose "
                "weight is needed: create it in Route 53 once"
            )
        return {key: now[0].rest[key] for key in ("SetIdentifier", "Weight") if key in now[0].rest}

    def _written(self, record: DnsRecord) -> dict[str, Any]:
        """A record in the format of Route 53's API."""
        written: dict[str, Any] = {"Name": f"{self.name}.", "Type": record.kind, **record.rest}
        if record.values:
            dot = "." if record.kind == "CNAME" else ""
            written["TTL"] = record.ttl
            written["ResourceRecords"] = [{"Value": value + dot} for value in record.values]
        return written

    def _balancer_zone(self, host: str) -> str:
        """The id of a load balancer's hosted zone, which an alias needs."""
        client = self._service("elbv2")
        marker: dict[str, str] = {}
        while True:
            page = self._call("describe_load_balancers", client=client, **marker)
            for one in page["LoadBalancers"]:
                if normalize_name(one["DNSName"]) == host.removeprefix("dualstack."):
                    return str(one["CanonicalHostedZoneId"])
            if "NextMarker" not in page:
                raise DnsError(f"no load balancer {host} in this account and region")
            marker = {"Marker": page["NextMarker"]}


class _RefusedError(DnsError):
    """A request that AWS refused.

    Attributes:
        code: AWS's error code.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def _refused(error: Any) -> DnsError:
    """Convert botocore's ``ClientError``."""
    code = error.response["Error"]["Code"]
    message = f"AWS answered {code}: {error.response['Error'].get('Message', '')}"
    return DnsUnavailableError(message) if code in _PASSING else _RefusedError(message, code)


def _unescape(name: str) -> str:
    """Decode the octal escapes in which Route 53 returns characters such as ``*``.

    https://docs.aws.amazon.com/Route53/latest/DeveloperGuide/DomainNameFormat.html
    """
    return normalize_name(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), name))


def _record(written: dict[str, Any]) -> DnsRecord:
    """Convert a record from the format of Route 53's API."""
    known = {"Name", "Type", "TTL", "ResourceRecords"}
    kind = written["Type"]
    values = [one["Value"] for one in written.get("ResourceRecords", [])]
    return DnsRecord(
        kind=kind,
        ttl=written.get("TTL", 0),
        values=sorted(_unescape(value) if kind == "CNAME" else value for value in values),
        rest={key: value for key, value in written.items() if key not in known},
    )
