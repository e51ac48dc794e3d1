#!/bin/busybox sh
# The first process of a machine of `cargo xtask test vm`: it makes ready what any system has, asks the
# agent what it can do here, and runs the tests. Lines for the host begin with @@.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp REBALANCER_METRICS_ADDRESS=none REBALANCER_TEST_CALLS=/checks/calls
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
say() { echo "@@ $*"; }

mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t securityfs securityfs /sys/kernel/security
mount -t bpf -o mode=0700 bpf /sys/fs/bpf
if grep -q vm.cgroup=hybrid /proc/cmdline; then
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/unified
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
    for name in $(awk '/^[^#]/ { print $1 }' /proc/cgroups); do
        mkdir "/sys/fs/cgroup/$name"
        mount -t cgroup -o "$name" "$name" "/sys/fs/cgroup/$name" || rmdir "/sys/fs/cgroup/$name"
    done
    mkdir /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd systemd /sys/fs/cgroup/systemd
else
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
dmesg -n 1
ulimit -n 65536
for module in inet_diag tcp_diag veth bridge tls; do modprobe "$module" || say "note no module $module"; done
ip link set lo up
yama=/proc/sys/kernel/yama/ptrace_scope
for word in $(cat /proc/cmdline); do
    case $word in vm.yama=*) echo "${word#vm.yama=}" >$yama ;; esac
done
# iptables of x_tables, or nf_tables alone.
if [ -e /proc/net/ip_tables_names ]; then tables=x_tables; else tables=nf_tables; fi

say "booted $(uname -r); lockdown $(cat /sys/kernel/security/lockdown 2>&1); $(grep -c ' - cgroup ' /proc/self/mountinfo) hierarchies of cgroup v1; Yama $(cat $yama 2>&1); $tables; LSMs $(cat /sys/kernel/security/lsm)"
say "doctor $(rebalancer doctor -o json 2>/dev/null | tr -d '\n')"

# Whether it starts, as an operator would start it, and ends.
rebalancer agent --policy /checks/policy.yaml --kubernetes=off --log-format json 2>/tmp/agent &
agent=$!
tries=600
while [ $tries -gt 0 ] && [ -d /proc/$agent ] && ! grep -q '"started"' /tmp/agent; do
    tries=$((tries - 1))
    usleep 100000
done
kill -TERM $agent 2>/dev/null
wait $agent
code=$?
if grep -q '"started"' /tmp/agent; then say "ran $code"; else say "refused $code $(tr '\n' ' ' </tmp/agent)"; fi
say "left $(ls /sys/fs/bpf | tr '\n' ' ')"

if grep -q '"started"' /tmp/agent; then
    while read -r test; do
        say "test $test"
        # Once more if it fails: a machine in software emulation on a busy host misses deadlines.
        for try in 1 2; do
            timeout 300 /checks/kernel --exact --test-threads=1 "$test" >/tmp/out 2>&1 </dev/null
            code=$?
            # None that ran is none that passed.
            grep -q '^test result: ok. 1 passed' /tmp/out || [ $code != 0 ] || code=none
            [ $code != 0 ] || break
            tail -n 60 /tmp/out
            say "note try $try of $test failed ($code)"
        done
        if [ $code = 0 ]; then say "passed $test"; else
            say "failed $test ($code): $(grep -A 1 'panicked at' /tmp/out | head -n 2 | tail -n 1 | cut -c 1-300)"
        fi
    done </checks/tests
fi
say end
reboot -f
