# Removes a lab: waits until its owner drops it or dies, even by SIGKILL, then removes every trace. The
# owner holds the other end of this script's standard input. Its standard output is the lab's lock, so that
# the lab does not look abandoned while it is being removed.
#
# $1 the lab's state folder; $2 its cgroup; $3 the name prefix of its network namespaces;
# $4 the folder of BPF pins that an agent may have left, and, with a suffix, those of others
state=$1 cgroup=$2 prefix=$3 pins=$4
trap '' HUP INT TERM
cat >/dev/null
[ -e "$state/kept" ] && exit 0

processes() { find "$cgroup" -name cgroup.procs -exec cat {} + 2>/dev/null; }
populated() { grep -qs '^populated 1' "$cgroup/cgroup.events"; }

# SIGTERM first: an agent removes its programs when it is stopped.
kill -TERM $(processes) 2>/dev/null
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    populated || break
    sleep 0.02
    kill -CONT $(processes) 2>/dev/null
done
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26; do
    populated || break
    sleep 0.1
done
# cgroup.kill exists since Linux 5.14.
while populated; do
    echo 1 2>/dev/null >"$cgroup/cgroup.kill" || kill -KILL $(processes) 2>/dev/null
    sleep 0.02
done

for name in /run/netns/"$prefix"*; do
    [ -e "$name" ] && ip netns del "${name##*/}"
done
[ -d "$cgroup" ] && find "$cgroup" -depth -type d -exec rmdir {} \;
rm -rf "$pins" "$pins"-* "$state"
