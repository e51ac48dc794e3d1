# PID 1 of a node, in its own mount, UTS, cgroup, PID and network namespaces: mounts the node's folders over
# the machine's, then waits and reaps orphans.
#
# $1 the node's folder with hierarchies (lines of type, options, path), sysctl/ and folders to mount;
# $2 its name; $3 the program that waits
set -eu
folder=$1 name=$2 pause=$3

mount -t proc proc /proc
mount -t sysfs sysfs /sys
grep -q ' \.$' "$folder/hierarchies" || mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
# In the cgroup namespace a new mount shows this node's cgroup as the root.
while read -r type options path; do
    mkdir -p "/sys/fs/cgroup/$path"
    mount -t "$type" -o "$options" cgroup "/sys/fs/cgroup/$path"
done <"$folder/hierarchies"
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /run/containerd
mount -t tmpfs tmpfs /run/netns
# Like /run of a real node: its files outlive the agent's pod, but not a reboot.
mount -t tmpfs -o mode=700 tmpfs /run/rebalancer
mount --bind "$folder/containerd" /var/lib/containerd
mount --bind "$folder/kubelet" /var/lib/kubelet
mount --bind "$folder/cni" /var/lib/cni
mount --bind "$folder/cni-conf" /etc/cni/net.d
mount --bind "$folder/pods" /var/log/pods
mount --bind "$folder/containers" /var/log/containers
# sysctls that the kubelet would change on the whole machine: it finds the values that it requires.
(cd "$folder/sysctl" && find . -type f) | while read -r file; do
    [ ! -e "/proc/sys/$file" ] || mount --bind "$folder/sysctl/$file" "/proc/sys/$file"
done
mount --make-rshared /
hostname "$name"
: >"$folder/ready"
exec "$pause"
