"""Print user-data for a machine that fetches one file of `cb build`, looks at its digest, and runs it as a node.

    python3 make.py https://example.org/wc?signed=… SHA256 > user-data

Nothing is installed: the image needs Python of the minor version that the file was built with, and systemd. No secret
is in it, for whoever is on the machine can read user-data: keys come afterwards, by your own channel, into
/etc/cloudburst/keys, with the options that name them in /etc/cloudburst/node.env (`docs/deploy.md`). Until then the
node serves this machine alone.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAM = "/opt/cloudburst/bin/cb"
FETCH = "/usr/local/sbin/cloudburst-fetch"


def main() -> int:
    """Print it."""
    if len(sys.argv) != 3 or len(sys.argv[2]) != 64:
        print(f"usage: {sys.argv[0]} URL SHA256", file=sys.stderr)
        return 2
    url, digest = sys.argv[1:]
    unit = (HERE.parent / "systemd" / "cloudburst.service").read_text()
    fetch = (HERE / "fetch.py").read_text()
    print(
        "#cloud-config\n"
        "users:\n"
        "  - default\n"
        "  - name: cloudburst\n    system: true\n    shell: /usr/sbin/nologin\n    homedir: /var/lib/cloudburst\n"
        "write_files:\n"
        f"  - path: {FETCH}\n    permissions: '0755'\n    content: |\n{_indented(fetch)}"
        f"  - path: /etc/systemd/system/cloudburst.service\n    permissions: '0644'\n    content: |\n{_indented(unit)}"
        "runcmd:\n"
        f"  - [python3, {FETCH}, {_quoted(url)}, {_quoted(digest)}, {PROGRAM}]\n"
        "  - [systemctl, daemon-reload]\n"
        "  - [systemctl, enable, --now, cloudburst.service]"
    )
    return 0


def _indented(text: str) -> str:
    return "".join(f"      {line}\n" if line else "\n" for line in text.splitlines())


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


if __name__ == "__main__":
    sys.exit(main())
