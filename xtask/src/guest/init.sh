#!/bin/busybox sh
# The first process of a guest: loads the modules, runs the tests, says what came of it.
#
# ttyS0 is the kernel's console; ttyS1 carries the output of the tests, and lines of our own,
# which begin with @ and the nonce that the host chose for this run; ttyS2 takes files out. The
# host believes nothing but a complete set of those lines (xtask/src/guest/verdict.rs).

export PATH=/bin HOME=/ TERM=dumb
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /tmp
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
ln -s /proc/self/fd /dev/fd
ifconfig lo 127.0.0.1 up
hostname guest

# Lines go as they are, both ways.
stty -F /dev/ttyS1 115200 raw -echo
stty -F /dev/ttyS2 115200 raw -echo
exec </dev/null >/dev/ttyS1 2>&1
# A console that nobody has open forgets its settings in a suspend.
sleep 86400 >/dev/ttyS0 &

. /guest/settings
say() {
    echo "@$NONCE $*"
}
finish() {
    echo "barchan-guest $NONCE end" >/dev/kmsg
    say "taint-after $(cat /proc/sys/kernel/tainted)"
    say end
    # The host ends the machine when it has read that.
    sleep 60
    poweroff -f
}

# From here on every message of the kernel counts.
echo 8 >/proc/sys/kernel/printk
echo "barchan-guest $NONCE begin" >/dev/kmsg
say "kernel $(uname -r)"
say "taint-before $(cat /proc/sys/kernel/tainted)"

while read -r name parameters; do
    if ! insmod "/guest/modules/$name.ko" $parameters; then
        say "insmod-failed $name"
        finish
    fi
done </guest/load

if [ "$SWAP_MIB" -gt 0 ]; then
    if ! { echo "${SWAP_MIB}M" >/sys/block/zram0/disksize && mkswap /dev/zram0 >/dev/null &&
        swapon /dev/zram0; }; then
        say swap-failed
        finish
    fi
fi

# Holds a virtual machine until the tests are done (xtask/src/guest/tcg.rs says why).
if [ -e /guest/hold ]; then
    /guest/hold --hold >/guest/held &
    holder=$!
    while kill -0 "$holder" && [ ! -s /guest/held ]; do
        sleep 0.1
    done
    if ! grep holding /guest/held >/dev/null; then
        cat /guest/held
        say hold-failed
        finish
    fi
fi

# No virtual CPU runs on the first processor there (the same), which is one more than was asked for.
confine=
if [ -e /guest/hold ]; then
    confine="taskset 1fe"
fi

n=0
while [ -e "/guest/tests/$n" ]; do
    cd /tmp
    say "begin $n"
    $confine setsid "/guest/tests/$n"
    say "status $n $?"
    n=$((n + 1))
done

if [ -e /guest/hold ]; then
    kill "$holder"
    wait "$holder"
fi

while read -r name; do
    if ! rmmod "$name"; then
        say "rmmod-failed $name"
    fi
done </guest/unload

# The debug kernel looks for memory that nobody points to; only what is some seconds old counts.
if [ -e /sys/kernel/debug/kmemleak ]; then
    sleep 6
    for _ in 1 2; do
        echo scan >/sys/kernel/debug/kmemleak
    done
    cat /sys/kernel/debug/kmemleak
fi

# What was asked for, as a header line with path and size, then the content.
while read -r path; do
    # Copied first: files of /proc tell no size.
    if [ -f "$path" ] && cat "$path" >/guest/fetched; then
        echo "@$NONCE file $(stat -c %s /guest/fetched) $path"
        cat /guest/fetched
    else
        echo "@$NONCE missing $path"
    fi >/dev/ttyS2
done </guest/fetch
echo "@$NONCE end" >/dev/ttyS2
finish
