#!/bin/sh
# The first process of the virtual machine: fetches one file as a machine of cloud-init does, runs it, says how that went.
# Each line for the outside begins with "vm:"; what is said otherwise is for whoever looks at the console.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PEX_ROOT=/var/cache/pex LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm /dev/pts /run/cloudburst /opt/cloudburst/bin
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
for option in $(cat /proc/cmdline); do
    case $option in vm.url=* | vm.digest=*) export "${option#vm.}" ;; esac
done
up() { cut -d ' ' -f 1 /proc/uptime; }
echo "vm: kernel $(up) $(uname -r)"
modprobe -a virtio_pci virtio_net 2>/dev/null
ip link set lo up
for try in 1 2 3 4 5 6 7 8 9 10; do [ -e /sys/class/net/eth0 ] && break; sleep 1; done
ip link set eth0 up && ip address add 10.0.2.15/24 dev eth0 && ip route add default via 10.0.2.2
echo "vm: network $(up) $(cat /sys/class/net/eth0/operstate)"
cb=/opt/cloudburst/bin/cb
step() {
    name=$1
    shift
    "$@"
    echo "vm: $name $(up) $?"
}
step fetch python3 /fetch.py "$url" "$digest" "$cb"
step info "$cb" info
step run sh -c "cd /books && $cb run --n 3 --pattern '*.txt'"
step selftest "$cb" selftest
"$cb" node --dir /run/cloudburst/node --workers 1 &
node=$!
waiting() { for try in $(seq 120); do "$cb" status --dir /run/cloudburst/node && return 0; sleep 1; done; return 1; }
step node waiting
kill -TERM "$node"
step down wait "$node"
echo "vm: end $(up) 0"
python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321FEDC)'
