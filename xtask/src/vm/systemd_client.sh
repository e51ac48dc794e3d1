#!/bin/bash
# A keep-alive client: sends a request every half second until /stop exists. Prints the number of requests,
# of requests without a response, and of connections.
requests=0 lost=0 connections=0
connect() {
    exec 3<>/dev/tcp/10.9.0.1/80
    connections=$((connections + 1))
    [ $connections -lt 2 ] || echo $connections >/moved
}
ask() { printf 'GET / HTTP/1.1\r\nHost: web\r\n\r\n' >&3; } 2>/dev/null
connect
while [ ! -e /stop ]; do
    # As HTTP libraries do: a kept connection that has been closed is replaced before the request.
    if read -r -t 0 -u 3; then connect; fi
    requests=$((requests + 1))
    length=
    ask && while IFS= read -r -t 10 -u 3 line; do
        line=${line%$'\r'}
        case $line in
            Content-Length:*) length=${line#*: } ;;
            "") break ;;
        esac
    done
    if [ -z "$length" ] || ! IFS= read -r -t 10 -N "$length" -u 3 body; then
        lost=$((lost + 1))
        connect
    fi
    sleep 0.5
done
echo $requests $lost $connections
