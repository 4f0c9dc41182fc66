"""The provider `ec2`: machines that are asked for, and that end with their run whatever becomes of whoever asked.

The one rule: what a run has is what the listing shows with its tag, and never what an answer said: a request whose
answer was lost, or that was done twice, is seen there, and what nobody needs is given back. One thread looks at the
listing and at what hosts have said, renews the run's record, and sends each host its letter. Three things end a
machine, and none needs another: the record that is not renewed, the time that was set when it booted, `cb reap`.
Source: burst-systems §5.5; docs/decisions/0042.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cloudburst import config
from cloudburst.burst import shipping
from cloudburst.burst.ec2 import account as aws
from cloudburst.burst.ec2 import mailbox, userdata
from cloudburst.burst.ec2.account import Account, spoken
from cloudburst.burst.ec2.allotment import Allotment, Instance
from cloudburst.burst.ec2.mailbox import Mailbox
from cloudburst.burst.ec2.profile import read
from cloudburst.burst.provider import ASKED, Machine, Notice, Plan, Spec
from cloudburst.errors import MachinesNotObtained, RequestError

END_S: Final = 90.0
GONE_S: Final = 60.0
"""How long a node may take to end when it is told to, and its machine to be listed as ended after that."""


class Ec2Hosts:
    """Machines of EC2, as `where` says (`profile.read`)."""

    def __init__(self, where: str, base: Path, notice: Notice) -> None:
        self._profile = read(where)
        self._account = Account(self._profile)
        self._notice = notice
        self._made = self._batches = 0
        self._changed = threading.Condition()
        self._allotment: Allotment | None = None
        self._box: Mailbox | None = None
        self._run = ""
        self._spec: Spec | None = None
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._over = threading.Event()
        self._letters: list[tuple[str, dict[str, Any]]] = []
        self._renewed_at = 0.0
        self._listed_at = 0.0
        self._trouble = ""

    # -- what is asked for

    def plan(self, spec: Spec, count: int) -> Plan:
        """Return what would be asked for, and whether it may be: AWS is asked that, too."""
        price, priced = self._price(spec)
        image, subnet = self._account.image(), self._account.subnets()[0]
        self._account.try_start(count, image, str(subnet["SubnetId"]))
        spares = self._profile.spares(count)
        ttl = userdata.TTL_S if spec.ttl_s is None else spec.ttl_s
        warnings = [f"machines end after {ttl / 3600:g} h whatever happens (--ttl)"]
        if spares:
            warnings.append(f"{spares} more are asked for, and given back once {count} are ready (spare)")
        kind = f"{self._profile.type} in {self._account.region}{', spot' if self._profile.spot else ''}"
        return Plan((kind,) * count, price * count, tuple(warnings), priced)

    def price(self, spec: Spec) -> float:
        """Return what one costs in an hour, as asked for, or by the profile or the table; for spot the most it can."""
        return self._price(spec)[0]

    def _price(self, spec: Spec) -> tuple[float, str]:
        return self._profile.price_in(self._account.region) if spec.price is None else (spec.price, "")

    def create(self, spec: Spec, count: int) -> Sequence[Machine]:
        """Ask for so many, and for some more in case that some come late."""
        if self._allotment is None:
            self._open(spec)
        assert self._allotment is not None
        names = [f"host-{self._made + number}" for number in range(count)]
        self._made += count
        with self._changed:
            made = self._allotment.ask(names, f"{self._profile.type} in {self._account.region}", time.time())
        for machine in made:
            self._notice(machine)
        try:
            self._ask_for(spec, count)
        except BaseException:
            with self._changed:
                self._allotment.forget(names)  # what comes nevertheless is surplus
            raise
        self._wake.set()
        return made

    def _open(self, spec: Spec) -> None:
        """Have a record, before there is any machine that could look for it."""
        bucket = self._account.bucket()
        archive = shipping.archive()
        self._spec, self._run = spec, spec.run
        self._box = Mailbox(self._account.s3, bucket, spec.run, self._profile.lease_s)
        self._allotment = Allotment(spec.run, 2 * self._profile.lease_s)
        with spoken("what machines run is brought to S3"):
            self._box.bring(archive)
            self._box.renew({})
        self._renewed_at = time.monotonic()
        ttl_s = userdata.TTL_S if spec.ttl_s is None else spec.ttl_s
        self._script = userdata.script(self._box.address(), archive.digest, self._profile.python, spec.ttl_s)
        self._tags = {
            "Name": f"cloudburst {spec.run}", aws.RUN: spec.run, aws.OWNER: self._account.owner, aws.BUCKET: bucket,
            aws.UNTIL: str(round(time.time() + ttl_s)),
        }  # fmt: skip
        self._over.clear()
        self._thread = threading.Thread(target=self._attend, name="ec2-hosts", daemon=True)
        self._thread.start()

    def _ask_for(self, spec: Spec, count: int) -> None:
        """Ask for all in one zone, in the next when that has no room; what is spare may fail."""
        self._batches += 1
        image, subnets = self._account.image(), self._account.subnets()
        group = self._account.group(str(subnets[0]["VpcId"]), str(subnets[0]["CidrBlock"]))
        what = {"group": group, "ImageId": image, "UserData": self._script}
        with spoken(f"{count} machines are asked for"):
            zone = self._start_in(subnets, count, f"{self._run}-{self._batches}", what)
        spares = self._profile.spares(count)
        if spares:
            try:
                with spoken("more are asked for"):
                    self._start_in([zone], spares, f"{self._run}-{self._batches}-more", what)
            except (MachinesNotObtained, RequestError):
                pass  # then there are none in case that some come late

    def _start_in(self, subnets: Sequence[Any], count: int, token: str, what: dict[str, Any]) -> Any:
        """Start so many in the first subnet that has room; return it."""
        from botocore.exceptions import ClientError

        for number, subnet in enumerate(subnets):
            try:
                self._account.start(count, f"{token}-{number}", str(subnet["SubnetId"]), self._tags, **what)
                return subnet
            except ClientError as fault:
                if fault.response["Error"]["Code"] not in aws.FULL or subnet is subnets[-1]:
                    raise
        raise AssertionError("there is a subnet")

    # -- the thread that looks

    def _attend(self) -> None:
        """Look again and again, until it is over."""
        while not self._over.is_set():
            try:
                with spoken("the run is looked after"):
                    self._look()
                self._trouble = ""
            except Exception as fault:  # it may pass; when it does not, the lease ends, here and there
                self._trouble = str(fault)
            with self._changed:
                settled = self._allotment is None or self._allotment.settled
            self._wake.wait(config.CLOUD_REST_S if settled else config.CLOUD_LOOK_S)
            self._wake.clear()

    def _look(self) -> None:
        assert self._allotment is not None
        assert self._box is not None
        listed, said = self._list(), self._box.hear()
        with self._changed:
            before = {one.name: one for one in self._allotment.machines}
            steps = self._allotment.take(listed, said, time.time())
            self._allotment.check()
            self._letters += [(id, self._letter(id, name, join)) for id, name, join in steps.letters]
            self._letters += self._new_keys()
            entries = self._allotment.entries
            news = [one for one in self._allotment.machines if _differ(before.get(one.name), one)]
            self._changed.notify_all()
        for machine in news:
            self._notice(machine)
        while self._letters:
            self._box.send(*self._letters[0])
            self._letters.pop(0)  # not before: sending may fail, and is tried again
        if self._box.differs(entries) or time.monotonic() - self._renewed_at >= config.CLOUD_REST_S:
            self._box.renew(entries)
            self._renewed_at = time.monotonic()
        self._account.terminate(steps.surplus)

    def _list(self) -> Sequence[Instance]:
        """Return what is listed; nothing new when no machine is on its way any more, and it was asked for just now.

        That is the dearest question of all, to who asks and to who answers, and AWS lets it be asked only so often.
        """
        assert self._allotment is not None
        with self._changed:
            due = self._allotment.awaits_machines or time.monotonic() - self._listed_at >= config.CLOUD_REST_S
        if not due:
            return ()
        self._listed_at = time.monotonic()
        return self._account.listed(run=self._run)

    def _letter(self, id: str, name: str, join: str) -> dict[str, Any]:
        """Return the order that begins a node, as the agent takes it; the courier adds where it can be reached."""
        spec = self._spec
        assert spec is not None
        until = 0 if spec.ttl_s is None else time.time() + spec.ttl_s
        return {
            "run": spec.run, "name": name, "join": join, "executors": spec.executors, "least": spec.least,
            "most": spec.most, "workers": spec.workers, "secret": spec.secret.text, "until": until,
            "keys": dict(spec.keys.host(name)),
        }  # fmt: skip

    def _new_keys(self) -> list[tuple[str, dict[str, Any]]]:
        """Return letters with new keys for the nodes that need some by now."""
        assert self._allotment is not None
        assert self._spec is not None
        keys = self._spec.keys
        due = [one.name for one in self._allotment.machines if one.ready and keys.due(one.name)]
        return [(self._allotment.instance_of(name), {"keys": dict(keys.host(name))}) for name in due]

    # -- what there is

    def list(self) -> Sequence[Machine]:
        """Return what was asked for and has not been given back."""
        with self._changed:
            return [] if self._allotment is None else self._allotment.machines

    def wait(self, machines: Sequence[Machine], within_s: float) -> Sequence[Machine]:
        """Wait until each is ready, or has failed."""
        end = time.monotonic() + within_s
        names = {machine.name for machine in machines}
        with self._changed:
            while True:
                assert self._allotment is not None
                found = [one for one in self._allotment.machines if one.name in names]
                left_s = end - time.monotonic()
                if left_s <= 0 or all(one.fault or self._allotment.knows_all(one) for one in found):
                    return [self._told(one) for one in found]
                self._changed.wait(left_s)

    def _told(self, machine: Machine) -> Machine:
        """Return a machine that is not ready with why that may be."""
        late = not machine.ready and not machine.fault and self._trouble
        return replace(machine, place=f"{machine.place}: {self._trouble}") if late else machine

    def console(self, machine: Machine) -> str:
        """Return the end of what its machine has written on its console."""
        with self._changed:
            id = "" if self._allotment is None else self._allotment.instance_of(machine.name)
        return self._account.console(id)[-config.CONSOLE_BYTES :] if id else ""

    # -- the end

    def destroy(self, machines: Sequence[Machine], *, leaving: bool) -> Sequence[str]:
        """End nodes, then their machines; after the last one, everything that bears the run's tag."""
        if self._allotment is None:
            return []
        groups = [[one.name] for one in machines] if leaving else [[one.name for one in machines]]
        try:
            left = [name for group in groups for name in self._end(group, "leave" if leaving else "drain")]
        except BaseException:
            self._give_back([one.name for one in machines])
            if not self.list():
                self._close()
            raise
        return left if self.list() else [*left, *self._close()]

    def _end(self, names: Sequence[str], how: str) -> Sequence[str]:
        """End the nodes in some places and give their machines back; return where processes were left."""
        end = time.monotonic() + END_S
        with self._changed:
            assert self._allotment is not None
            allotment = self._allotment
            allotment.end(names, how)
            self._wake.set()
            while not all(allotment.has_ended(name) for name in names) and time.monotonic() < end:
                self._changed.wait(1.0)
            left = [name for name in names if allotment.left(name)]
        self._give_back(names)
        return left

    def _give_back(self, names: Sequence[str]) -> None:
        with self._changed:
            assert self._allotment is not None
            ids = [id for name in names if (id := self._allotment.instance_of(name))]
        with spoken("machines are given back"):
            self._account.terminate(ids)
        with self._changed:
            self._allotment.forget(names)

    def _close(self) -> Sequence[str]:
        """Give back all that bears the run's tag, and remove its record; return what is still listed as alive."""
        self._over.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        box, self._box, self._allotment = self._box, None, None
        with spoken("machines are given back"):
            self._terminate_all()
            if box is not None:
                box.remove()
            end = time.monotonic() + GONE_S
            while (left := self._terminate_all()) and time.monotonic() < end:
                time.sleep(config.CLOUD_REST_S)
        return left

    def _terminate_all(self) -> Sequence[str]:
        """Have everything end that is alive; return what was."""
        alive = [one.id for one in self._account.listed(run=self._run) if one.state in aws.LIVE]
        self._account.terminate(alive)
        return alive

    def reap(self, older_s: float | None, *, dry: bool) -> Sequence[Machine]:
        """End machines that this account's user has asked for, and whose run's record is not renewed any more."""
        with spoken("machines of runs that are over are looked for"):
            found = [one for one in self._account.described(owner=self._account.owner) if _alive(one)]
            left = [one for one in found if self._is_over(one, older_s)]
            if not dry:
                self._account.terminate([str(one["InstanceId"]) for one in left])
                self._remove_records({_tag(one, aws.RUN) for one in found if one not in left})
        return [_left(one) for one in left]

    def _remove_records(self, kept: set[str]) -> None:
        """Remove what runs that are over, and have no machine any more, have left in the bucket."""
        bucket = self._account.bucket_name
        for run in mailbox.runs(self._account.s3, bucket):
            if run not in kept and mailbox.overdue_s(self._account.s3, bucket, run) > 0:
                mailbox.remove(self._account.s3, bucket, f"runs/{run}/")

    def _is_over(self, one: Any, older_s: float | None) -> bool:
        age_s = time.time() - one["LaunchTime"].timestamp()
        if older_s is not None:
            return bool(age_s >= older_s)
        if time.time() > float(_tag(one, aws.UNTIL) or "inf"):
            return True
        return mailbox.overdue_s(self._account.s3, _tag(one, aws.BUCKET), _tag(one, aws.RUN)) > 0


def _differ(before: Machine | None, now: Machine) -> bool:
    return before is None or (before.phase, before.fault) != (now.phase, now.fault)


def _alive(one: Any) -> bool:
    return one["State"]["Name"] in aws.LIVE


def _tag(one: Any, name: str) -> str:
    return next((str(tag["Value"]) for tag in one.get("Tags", ()) if tag["Key"] == name), "")


def _left(one: Any) -> Machine:
    place = f"{one['InstanceType']} {one['Placement']['AvailabilityZone']}"
    return Machine(one["InstanceId"], place, _tag(one, aws.RUN), reached={ASKED: one["LaunchTime"].timestamp()})
