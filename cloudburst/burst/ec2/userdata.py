"""What a machine of EC2 does when it boots: one script, the same for all machines of a run.

The one rule: it installs nothing and asks for nothing but one archive, whose SHA-256 it carries. It first says when the
machine is to end at the latest, and its last line ends the machine, whatever came before. It is at most 2 kB.
Source: burst-systems §5.5; docs/decisions/0042.
"""

from __future__ import annotations

import math
import shlex
from typing import Final

TTL_S: Final = 24 * 3600.0
"""How long a machine runs at most when its run has no time to live."""

SCRIPT: Final = """#!/bin/sh
shutdown -h +{minutes}
umask 077
export HOME="${{HOME:-/root}}" PYTHONNOUSERSITE=1
{python} -I - <<'END'
import gzip,hashlib,io,json,os,sys,tarfile,time
from urllib.request import urlopen
begun=time.time()
def get(url,left=20):
 try:return urlopen(url,timeout=60).read()
 except OSError as e:
  if left<1 or getattr(e,"code",0)in(403,404):raise
  time.sleep(.5);return get(url,left-1)
url="{url}"
digest="{digest}"
place=os.path.expanduser("~/.cache/cloudburst/"+digest)
data=get(json.loads(get(url))["archive"])
if hashlib.sha256(data).hexdigest()!=digest:sys.exit("what came is not "+digest)
tarfile.open(fileobj=io.BytesIO(gzip.decompress(data))).extractall(place)
sys.path.insert(0,place)
from cloudburst.burst.ec2.courier import main
main(url,place,begun)
END
shutdown -h now
"""


def script(url: str, digest: str, python: str, ttl_s: float | None) -> str:
    """Return the script for machines whose run's record is at `url`, and that end after `ttl_s` at the latest."""
    minutes = math.ceil((TTL_S if ttl_s is None else ttl_s) / 60)
    return SCRIPT.format(url=url, digest=digest, python=shlex.quote(python), minutes=minutes)
