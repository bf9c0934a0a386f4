#!/bin/sh
# Process 1 of a machine. NODE and NODES come from the kernel's command line.
export PATH=/bin HOME=/root TERM=dumb
B=/bin/busybox

fail() {
	echo "vm: could not $*"
	$B sync
	$B poweroff -f
}

$B mount -t proc proc /proc && $B mount -t sysfs sysfs /sys && $B mount -t devtmpfs devtmpfs /dev ||
	fail mount /proc, /sys and /dev
$B mkdir -p /dev/pts /dev/shm
$B mount -t devpts devpts /dev/pts && $B mount -t tmpfs tmpfs /dev/shm && $B mount -t tmpfs tmpfs /tmp ||
	fail mount /dev/pts, /dev/shm and /tmp
$B --install -s /bin || fail name the applets of busybox

while read -r module; do
	insmod "/lib/modules/$module" || fail load module "$module"
done </lib/modules/order

hostname "node$NODE"
k=1
echo 127.0.0.1 localhost >/etc/hosts
while [ "$k" -le "$NODES" ]; do
	echo "10.77.0.$k node$k" >>/etc/hosts
	k=$((k + 1))
done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=131072 share /share || fail mount the shared folder

# The address first: what an rxe device finds when it is made is in its table of GIDs at once.
ip link set lo up && ip addr add "10.77.0.$NODE/24" dev eth0 && ip link set eth0 up ||
	fail set up eth0
rdma link add rxe0 type rxe netdev eth0 || fail make the rxe device
gid=$(rxe-gid) || fail find the GID of 10.77.0."$NODE"
state=$(cat /sys/class/infiniband/rxe0/ports/1/state)
[ "$state" = "4: ACTIVE" ] || fail bring the rxe port up: it is "$state"
echo "vm: node $NODE, rxe0 active, GID $gid, after $(cut -d ' ' -f 1 /proc/uptime) s"

cd /root
agent guest-agent
fail go on: the agent ended
