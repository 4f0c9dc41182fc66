#!/bin/sh
# join PORT COMMAND …: run a command that begins a cluster, or joins the nodes that there are.
#
# $SERVICE is a name that leads to the addresses of all ready nodes (a headless service), $POD_IP is this one's. The
# first node of a set finds nobody and begins; every other, and the first one when it is started again, joins those that
# it finds. So no two may be started for the first time at once: a StatefulSet with OrderedReady does not.
set -eu
port=$1
shift
for address in $(getent ahostsv4 "$SERVICE" | cut -d ' ' -f 1 | sort -u); do
    if [ "$address" != "$POD_IP" ]; then
        set -- "$@" --join "tcp://$address:$port"
    fi
done
exec "$@" --listen "tcp://$POD_IP:$port"
