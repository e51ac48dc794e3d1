# Process 1 of a node, run in mount, UTS, cgroup, PID and network namespaces of its own: lays the
# node's own folders over the machine's, then waits, and reaps what is left to it.
#
# $1 the node's folder: hierarchies (one a line: type, options, place), sysctl/, and what is bound;
# $2 its name; $3 the program that waits
set -eu
folder=$1 name=$2 pause=$3

mount -t proc proc /proc
mount -t sysfs sysfs /sys
grep -q ' \.$' "$folder/hierarchies" || mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
# In the cgroup namespace a new mount shows this node's cgroup as the root.
while read -r type options place; do
    mkdir -p "/sys/fs/cgroup/$place"
    mount -t "$type" -o "$options" cgroup "/sys/fs/cgroup/$place"
done <"$folder/hierarchies"
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /run/containerd
mount -t tmpfs tmpfs /run/netns
# As /run is a node's own: what an agent leaves there outlives its pod, and not the node.
mount -t tmpfs -o mode=700 tmpfs /run/rebalancer
mount --bind "$folder/containerd" /var/lib/containerd
mount --bind "$folder/kubelet" /var/lib/kubelet
mount --bind "$folder/cni" /var/lib/cni
mount --bind "$folder/cni-conf" /etc/cni/net.d
mount --bind "$folder/pods" /var/log/pods
mount --bind "$folder/containers" /var/log/containers
# The machine's settings that the kubelet would change: it finds them as it wants them.
(cd "$folder/sysctl" && find . -type f) | while read -r file; do
    [ ! -e "/proc/sys/$file" ] || mount --bind "$folder/sysctl/$file" "/proc/sys/$file"
done
mount --make-rshared /
hostname "$name"
: >"$folder/ready"
exec "$pause"
