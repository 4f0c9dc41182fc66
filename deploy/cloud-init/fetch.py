"""Fetch one file, and put it in its place if it is the one that was meant: URL SHA256 PATH. Tries for five minutes."""

import hashlib
import os
import sys
import time
import urllib.request

TRY_S = 300.0
PAUSE_S = 2.0


def main() -> int:
    """Return 0 when it is there, 1 when it could not be had, 3 when it is another one."""
    url, digest, path = sys.argv[1:]
    end_s = time.monotonic() + float(os.environ.get("FETCH_TRY_S", TRY_S))
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                data = answer.read()
            break
        except OSError as fault:  # names of hosts and networks come late after a boot
            print(f"fetch: {url.partition('?')[0]}: {fault}", file=sys.stderr)
            if time.monotonic() >= end_s:
                return 1
            time.sleep(PAUSE_S)
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        print(f"fetch: {url.partition('?')[0]} has SHA-256 {found}, and not {digest}: it is not used", file=sys.stderr)
        return 3
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    beside = f"{path}.{os.getpid()}"
    with open(beside, "wb") as file:
        file.write(data)
    os.chmod(beside, 0o755)
    os.replace(beside, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
