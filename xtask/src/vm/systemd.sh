#!/bin/bash
# Runs as a systemd unit in the virtual machine: uses the agent's unit of deploy/systemd as an operator
# would. Lines for xtask start with @@.
exec >/dev/console 2>&1
say() { echo "@@ $*"; }

# check NAME COMMAND...: passes if the command succeeds within a minute.
check() {
    local name=$1 tries=120
    shift
    until "$@"; do
        tries=$((tries - 1))
        if [ $tries -eq 0 ]; then
            journalctl -u rebalancer --no-pager -n 40
            say "failed $name"
            return
        fi
        sleep 0.5
    done
    say "passed $name"
}
logged() { journalctl -u rebalancer --no-pager -o cat | grep -q "$1"; }
edit() { sed -i "s/mode: .*/mode: $1/" /etc/rebalancer/policy.yaml; }

depmod -a
say "booted $(uname -r); $(systemctl --version | head -n 1); $(stat -fc %T /sys/fs/cgroup); AppArmor $(cat /sys/module/apparmor/parameters/enabled)"
# The ramp is off, so that a rule may move in its first minute. doctor runs under the unit's restrictions.
mkdir -p /etc/systemd/system/rebalancer.service.d
printf '[Service]\nEnvironment=REBALANCER_NO_RAMP=true\n' >/etc/systemd/system/rebalancer.service.d/ramp.conf
cat >/etc/systemd/system/rebalancer.service.d/doctor.conf <<'UNIT'
[Service]
ExecStartPost=/bin/sh -c 'rebalancer doctor; echo "doctor: exit code $?"'
UNIT
systemctl daemon-reload
systemctl start rebalancer nginx
# No retries: systemctl returns when the agent is ready.
if rebalancer status >/dev/null; then say "passed starts and answers at once"; else say "failed starts and answers at once"; fi
check "systemctl status shows the mode" test "$(systemctl show -p StatusText --value rebalancer)" = "mode DryRun, 1 rule"
check "doctor finds nothing missing within the unit's restrictions" logged "doctor: exit code 0"
rm /etc/systemd/system/rebalancer.service.d/doctor.conf
systemctl daemon-reload
say "note $(systemd-analyze security rebalancer --no-pager | tail -n 1)"

ip netns add client
ip link add v0 type veth peer name v1 netns client
ip addr add 10.9.0.1/24 dev v0
ip link set v0 up
ip -n client addr add 10.9.0.2/24 dev v1
ip -n client link set v1 up
ip netns exec client bash /client.sh >/client.out 2>&1 &
client=$!
would_move() { rebalancer events | grep -q "rule web would be moved"; }
check "reports in DryRun what it would move" would_move
check "moves nothing in DryRun" test ! -e /moved

edit Enforce
check "systemctl reload applies a policy" systemctl reload rebalancer
edit Enfarce
refused() { ! systemctl reload rebalancer; }
check "systemctl reload fails for an invalid policy" refused
check "and the journal has its line and the remedy" logged "did you mean \`Enforce\`"
edit Enforce
check "moves in Enforce" test -s /moved
touch /stop
wait $client
rebalancer events | tail -n 5
read -r requests lost connections </client.out
say "note requests: $requests, without an answer: $lost, connections: $connections"
check "no request is lost" test "$requests" -gt 0 -a "$lost" -eq 0

kill -9 "$(systemctl show -p MainPID --value rebalancer)"
check "after kill -9 the next agent takes over" logged "taken_over=true"
systemctl stop rebalancer
nothing_left() { [ -z "$(ls /sys/fs/bpf)" ] && [ ! -e /run/rebalancer ]; }
check "stopped, it leaves nothing" nothing_left
say end
systemctl reboot -f -f
