"""What a run has in a bucket: its record, which is its lease, what its hosts say, and letters that are read once.

The one rule: hosts hold nothing but addresses with a signature and an end (presigned URLs), each for one object and one
verb; no role, no key of the account. The record is a small object that is written again and again; who finds it
unchanged for as long as it says, or gone, is left alone in the world. What is said to each host is a second object,
whose version the record tells, so that many hosts may look often.

    shipped/DIGEST.tar.gz       the archive, kept for all runs
    runs/RUN/record             beat, lease_s, soabi, archive, version, and the addresses of itself and of `hosts`
    runs/RUN/hosts              for each instance: where it speaks, its letter, how it is to end
    runs/RUN/letter/INSTANCE/1  the order that begins its node, with the secret: gone once it was read; 2 and so on:
                                whatever the agent there is told after that
    runs/RUN/said/INSTANCE      what it has said, all together

Source: burst-systems §5.5; docs/decisions/0042.
"""

from __future__ import annotations

import json
import math
import sysconfig
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

from cloudburst.burst.shipping import Archive

MISSING: Final = ("404", "NoSuchKey", "NoSuchBucket")
SOABI: Final = sysconfig.get_config_var("SOABI")
URL_S: Final = 6 * 3600
RENEW_S: Final = 3600.0
"""For how long an address is signed, and how old it becomes until it is signed anew."""


class Mailbox:
    """The objects of one run. Raises what boto3 does."""

    def __init__(self, s3: Any, bucket: str, run: str, lease_s: float) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._prefix = f"runs/{run}/"
        self._lease_s = lease_s
        self._archive = ""
        self._beat = 0
        self._version = 0
        self._hosts: dict[str, dict[str, str]] = {}
        self._letters: dict[str, int] = {}
        self._entries: dict[str, str] | None = None
        self._signed_at = 0.0
        self._tags: dict[str, str] = {}
        self._said: dict[str, dict[str, Any]] = {}

    def bring(self, archive: Archive) -> None:
        """See to it that what hosts run is there."""
        from botocore.exceptions import ClientError

        self._archive = f"shipped/{archive.digest}.tar.gz"
        try:
            self._s3.head_object(Bucket=self._bucket, Key=self._archive)
        except ClientError as fault:
            if fault.response["Error"]["Code"] not in MISSING:
                raise
            self._put(self._archive, archive.path.read_bytes())

    def address(self) -> str:
        """Return where hosts read the record."""
        return self._url("get_object", self._prefix + "record")

    def send(self, id: str, letter: Mapping[str, Any]) -> None:
        """Leave a letter for an instance."""
        number = self._letters.get(id, 0) + 1
        self._put(f"{self._prefix}letter/{id}/{number}", json.dumps(letter).encode())
        self._letters[id] = number
        self._entries = None  # so that it is told

    def renew(self, entries: Mapping[str, str]) -> None:
        """Say that the run goes on, which instances it has, and how each is to end ("" when it is not to)."""
        if self.differs(entries) or time.monotonic() - self._signed_at > RENEW_S:
            self._write_hosts(entries)
        self._beat += 1
        record = {
            "beat": self._beat, "lease_s": self._lease_s, "soabi": SOABI, "version": self._version,
            "archive": self._url("get_object", self._archive), "record": self.address(),
            "hosts": self._url("get_object", self._prefix + "hosts"),
        }  # fmt: skip
        self._put(self._prefix + "record", json.dumps(record).encode())

    def differs(self, entries: Mapping[str, str]) -> bool:
        """Return whether hosts are to be told something new."""
        return self._entries != entries

    def _write_hosts(self, entries: Mapping[str, str]) -> None:
        if time.monotonic() - self._signed_at > RENEW_S:
            self._hosts.clear()
            self._signed_at = time.monotonic()
        for id in entries:
            if id not in self._hosts:
                self._hosts[id] = {"say": self._url("put_object", f"{self._prefix}said/{id}")}
            for number in range(1, self._letters.get(id, 0) + 1):
                letter = f"{self._prefix}letter/{id}/{number}"
                self._hosts[id][f"letter {number}"] = self._url("get_object", letter)
                self._hosts[id][f"read {number}"] = self._url("delete_object", letter)
        told = {id: {**self._hosts[id], "end": how} for id, how in entries.items()}
        self._put(self._prefix + "hosts", json.dumps(told).encode())
        self._version += 1
        self._entries = dict(entries)

    def hear(self) -> Mapping[str, dict[str, Any]]:
        """Return what hosts have said that is new, by instance; `at` is when it was heard."""
        news = {}
        place = f"{self._prefix}said/"
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=place):
            for one in page.get("Contents", ()):
                id, tag = one["Key"].removeprefix(place), one["ETag"]
                if self._tags.get(id) != tag:
                    data = self._s3.get_object(Bucket=self._bucket, Key=one["Key"])["Body"].read()
                    news[id] = {**json.loads(data), "at": time.time()}
                    self._tags[id] = tag
        return news

    def remove(self) -> None:
        """Remove all of the run but what it has shipped."""
        remove(self._s3, self._bucket, self._prefix)

    def _put(self, key: str, data: bytes) -> None:
        self._s3.put_object(Bucket=self._bucket, Key=key, Body=data, ServerSideEncryption="AES256")

    def _url(self, verb: str, key: str) -> str:
        where = {"Bucket": self._bucket, "Key": key}
        return str(self._s3.generate_presigned_url(verb, Params=where, ExpiresIn=URL_S))


def remove(s3: Any, bucket: str, prefix: str) -> None:
    """Remove every object below a prefix."""
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        keys = [{"Key": one["Key"]} for one in page.get("Contents", ())]
        if keys:
            s3.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})


def runs(s3: Any, bucket: str) -> list[str]:
    """Return the runs that a bucket has objects of; none when there is no such bucket."""
    from botocore.exceptions import ClientError

    found = []
    try:
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="runs/", Delimiter="/"):
            found += [one["Prefix"].split("/")[1] for one in page.get("CommonPrefixes", ())]
    except ClientError as fault:
        if fault.response["Error"]["Code"] not in MISSING:
            raise
    return found


def overdue_s(s3: Any, bucket: str, run: str) -> float:
    """Return for how many seconds the lease of a run has been over, by the clock of S3: below 0 while it is not.

    Infinity when it has no record.
    """
    from botocore.exceptions import ClientError

    try:
        found = s3.get_object(Bucket=bucket, Key=f"runs/{run}/record")
    except ClientError as fault:
        if fault.response["Error"]["Code"] not in MISSING:
            raise
        return math.inf
    now = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
    return float((now - found["LastModified"]).total_seconds()) - float(json.loads(found["Body"].read())["lease_s"])
