"""An account of AWS: whose it is, what of it is used, and what its refusals mean.

The one rule: what belongs to all runs (a bucket, a security group) is made once and kept, since it costs nothing; it is
found by its name. What an API refuses is said in its own words, with what to do. Source: burst-systems §5.5;
docs/decisions/0042.
"""

from __future__ import annotations

import base64
import importlib.util
import ipaddress
import platform
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from cloudburst.burst.ec2.allotment import Instance
from cloudburst.burst.ec2.profile import Profile
from cloudburst.errors import EnvironmentMismatch, MachinesNotObtained, RequestError

RUN: Final = "cloudburst-run"
OWNER: Final = "cloudburst-owner"
UNTIL: Final = "cloudburst-until"
BUCKET: Final = "cloudburst-bucket"
"""The tags of an instance: its run, who began that, when it is over (seconds since 1970), and where its record is."""

GROUP: Final = "cloudburst"
LIVE: Final = ("pending", "running", "stopping", "stopped")
FULL: Final = ("InsufficientInstanceCapacity", "InsufficientHostCapacity", "Unsupported", "SpotMaxPriceTooLow")
"""What another zone may not say."""

IMAGES: Final = {
    (3, 11): ("136693071363", "debian-12-{kind}-*"),
    (3, 12): ("099720109477", "ubuntu/images/hvm-ssd*/ubuntu-noble-24.04-{kind}-server-*"),
    (3, 13): ("136693071363", "debian-13-{kind}-*"),
}
"""Whose image, by Python's version there, and what it is called: compiled modules need the same on all sides."""


def require() -> None:
    """Raise EnvironmentMismatch when what speaks to AWS is not installed here."""
    if importlib.util.find_spec("boto3") is None:
        raise EnvironmentMismatch("machines of EC2 need boto3: pip install boto3")


@contextmanager
def spoken(what: str) -> Iterator[None]:
    """Raise what AWS refuses, or cannot be asked, as an error that says what was wanted and what to do."""
    from botocore import exceptions

    try:
        yield
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as fault:
        raise EnvironmentMismatch(f"{what}: {fault}; AWS_PROFILE or `aws configure` says who you are") from None
    except exceptions.NoRegionError:
        raise EnvironmentMismatch(f"{what}: no region is chosen: --on 'ec2?region=eu-west-1', or AWS_REGION") from None
    except exceptions.ClientError as fault:
        code, words = fault.response["Error"]["Code"], fault.response["Error"].get("Message", "")
        kind = RequestError if code.startswith(("Unauthorized", "AccessDenied", "Invalid")) else MachinesNotObtained
        raise kind(f"{what}: AWS says {code}: {words}") from None
    except exceptions.BotoCoreError as fault:
        raise MachinesNotObtained(f"{what}: {fault}") from None


class Account:
    """What a profile uses of an account. Every verb raises EnvironmentMismatch, RequestError, MachinesNotObtained."""

    def __init__(self, profile: Profile) -> None:
        require()
        import boto3
        from botocore.config import Config

        self.profile = profile
        with spoken("AWS is to be used"):
            session = boto3.session.Session(region_name=profile.region or None)
            settings = Config(retries={"mode": "standard", "max_attempts": 4}, connect_timeout=5, read_timeout=20)
            self.ec2 = session.client("ec2", config=settings)
            own_endpoint = self.ec2.meta.endpoint_url.endswith("amazonaws.com")
            style = {"addressing_style": "virtual" if own_endpoint else "path"}
            signed = Config(signature_version="s3v4", s3=style)
            self.s3 = session.client("s3", config=settings.merge(signed))
            self.region = str(self.ec2.meta.region_name)
            who = session.client("sts", config=settings).get_caller_identity()
        self._image = ""
        self.owner = str(who["Arn"])
        self.number = str(who["Account"])

    # -- what is chosen

    def image(self) -> str:
        """Return the profile's image, or the newest with the Python of this process."""
        if not self._image:
            architecture = self.architecture()
            self._image = self.profile.image or self._newest_image(architecture)
        return self._image

    def _newest_image(self, architecture: str) -> str:
        version = sys.version_info[:2]
        if version not in IMAGES:
            raise RequestError(
                f"no image with Python {version[0]}.{version[1]} is known: name one that has it, --on 'ec2?image=ami-…'"
            )
        owner, name = IMAGES[version]
        wanted = name.format(kind={"x86_64": "amd64"}.get(architecture, "arm64"))
        filters = [{"Name": "name", "Values": [wanted]}, {"Name": "state", "Values": ["available"]}]
        with spoken("an image is looked for"):
            found = self.ec2.describe_images(Owners=[owner], Filters=filters)["Images"]
        if not found:
            raise RequestError(f"{owner} has no image {wanted} in {self.region}: --on 'ec2?image=ami-…' names one")
        return str(max(found, key=lambda one: one["CreationDate"])["ImageId"])

    def architecture(self) -> str:
        """Return that of the machines. Raises RequestError when it is not this one's: compiled modules go there."""
        here = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
        with spoken(f"{self.profile.type} is looked up"):
            [known] = self.ec2.describe_instance_types(InstanceTypes=[self.profile.type])["InstanceTypes"]
        there = known["ProcessorInfo"]["SupportedArchitectures"]
        if here not in there:
            kinds = ", ".join(there)
            raise RequestError(f"{self.profile.type} is {kinds}, and this machine is {here}: choose another type")
        return here

    def subnets(self) -> Sequence[Mapping[str, Any]]:
        """Return those that machines may be in: the one of the profile, or one of the default network in each zone."""
        asked: dict[str, Any] = {"Filters": [{"Name": "default-for-az", "Values": ["true"]}]}
        if self.profile.subnet:
            asked = {"SubnetIds": [self.profile.subnet]}
        with spoken("a subnet is looked for"):
            found: list[Mapping[str, Any]] = self.ec2.describe_subnets(**asked)["Subnets"]
        if not found:
            raise RequestError(f"there is no default network in {self.region}: --on 'ec2?subnet=subnet-…' names one")
        return sorted(found, key=lambda one: str(one["AvailabilityZone"]))

    def group(self, network: str, block: str) -> str:
        """Return the security group of a network, made when there is none.

        The hosts reach each other, and are reached from the profile's `reach`, or from this machine's address in
        that network; nobody else reaches them.
        """
        named = [{"Name": "group-name", "Values": [GROUP]}, {"Name": "vpc-id", "Values": [network]}]
        with spoken("the security group `cloudburst` is made or used"):
            found = self.ec2.describe_security_groups(Filters=named)["SecurityGroups"]
            if found:
                id = str(found[0]["GroupId"])
            else:
                made = self.ec2.create_security_group(
                    GroupName=GROUP, Description="Machines of cloudburst among each other", VpcId=network
                )
                id = str(made["GroupId"])
            self._allow(id, {"UserIdGroupPairs": [{"GroupId": id}]})
            self._allow(id, {"IpRanges": [{"CidrIp": self.profile.reach or f"{_own_address(block)}/32"}]})
        return id

    def _allow(self, group: str, who: dict[str, Any]) -> None:
        from botocore.exceptions import ClientError

        rule = {"IpProtocol": "tcp", "FromPort": 1024, "ToPort": 65535, **who}
        try:
            self.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
        except ClientError as fault:
            if fault.response["Error"]["Code"] != "InvalidPermission.Duplicate":
                raise

    @property
    def bucket_name(self) -> str:
        """Return what the bucket is called."""
        return self.profile.bucket or f"cloudburst-{self.number}-{self.region}"

    def bucket(self) -> str:
        """Return the bucket, made when there is none; what runs leave in it goes after a day."""
        name = self.bucket_name
        from botocore.exceptions import ClientError

        with spoken(f"the bucket {name} is made or used"):
            try:
                self.s3.head_bucket(Bucket=name)
            except ClientError as fault:
                if fault.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
                    raise
                self._make_bucket(name)
        return name

    def _make_bucket(self, name: str) -> None:
        place = {} if self.region == "us-east-1" else {"LocationConstraint": self.region}
        self.s3.create_bucket(Bucket=name, **({"CreateBucketConfiguration": place} if place else {}))
        closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
        self.s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=dict.fromkeys(closed, True))
        rules = [
            {"ID": prefix, "Status": "Enabled", "Filter": {"Prefix": f"{prefix}/"}, "Expiration": {"Days": days}}
            for prefix, days in (("runs", 1), ("shipped", 30))
        ]
        self.s3.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": rules})

    # -- machines

    def start(self, count: int, token: str, subnet: str, tags: Mapping[str, str], **what: Any) -> None:
        """Ask for exactly so many. What comes of it is seen by `listed`, whatever the answer was."""
        named = [{"Key": key, "Value": value} for key, value in tags.items()]
        spot = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
        market = {"InstanceMarketOptions": {"MarketType": "spot", "SpotOptions": spot}} if self.profile.spot else {}
        group = what.pop("group", "")
        self.ec2.run_instances(
            MinCount=count, MaxCount=count, ClientToken=token, InstanceType=self.profile.type, SubnetId=subnet,
            InstanceInitiatedShutdownBehavior="terminate", **market, **what,
            MetadataOptions={"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
            TagSpecifications=[{"ResourceType": kind, "Tags": named} for kind in ("instance", "volume")],
            **({"SecurityGroupIds": [group]} if group else {}),
        )  # fmt: skip

    def try_start(self, count: int, image: str, subnet: str) -> None:
        """Ask whether so many may be asked for. Raises RequestError, MachinesNotObtained."""
        from botocore.exceptions import ClientError

        with spoken(f"{count} machines are planned"):
            try:
                self.start(count, "", subnet, {RUN: "plan"}, ImageId=image, DryRun=True)
            except ClientError as fault:
                if fault.response["Error"]["Code"] != "DryRunOperation":
                    raise

    def listed(self, **tags: str) -> Sequence[Instance]:
        """Return the instances with these tags, those that have ended in the last hour, too."""
        return [_instance(one) for one in self.described(**tags)]

    def described(self, **tags: str) -> Iterator[Mapping[str, Any]]:
        """Return the same as they are described."""
        names = {"run": RUN, "owner": OWNER}
        filters = [{"Name": f"tag:{names[name]}", "Values": [value]} for name, value in tags.items()]
        for page in self.ec2.get_paginator("describe_instances").paginate(Filters=filters):
            for several in page["Reservations"]:
                yield from several["Instances"]

    def terminate(self, ids: Sequence[str]) -> None:
        """End instances; those that have ended already are none of it."""
        from botocore.exceptions import ClientError

        if not ids:
            return
        try:
            self.ec2.terminate_instances(InstanceIds=list(ids))
        except ClientError as fault:
            if fault.response["Error"]["Code"] != "InvalidInstanceID.NotFound":
                raise
            for id in ids if len(ids) > 1 else ():
                self.terminate([id])

    def console(self, id: str) -> str:
        """Return what an instance has written on its console; "" when that cannot be had."""
        from botocore.exceptions import BotoCoreError, ClientError

        with suppress(ClientError, BotoCoreError, ValueError):
            said = self.ec2.get_console_output(InstanceId=id).get("Output", "")
            return base64.b64decode(said).decode(errors="replace") if said and "\n" not in said.strip() else str(said)
        return ""


def _instance(said: Mapping[str, Any]) -> Instance:
    why = said.get("StateReason", {}).get("Message", "")
    place = f"{said['InstanceType']} {said['Placement']['AvailabilityZone']}"
    return Instance(said["InstanceId"], said["State"]["Name"], said.get("PrivateIpAddress", ""), place, why)


def _own_address(block: str) -> str:
    """Return the address from which this machine reaches a network: nothing is sent for that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect((str(ipaddress.ip_network(block)[1]), 9))
        return str(asking.getsockname()[0])
