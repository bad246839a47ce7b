#!/bin/sh
# `barchan bench paper` in a guest, with this script's arguments, else `--only micro`: Dune's tables again, in Bochs
# as counts of instructions. benches/paper.md has the commands that bring what is needed into the guest.

export PATH=/usr/bin:/bin BARCHAN_ROOT=/barchan
cd /tmp || exit 1
mkdir -p /barchan/build
[ $# -gt 0 ] || set -- --only micro
# There is no compiler in the guest: what was brought is newer than its source.
summary=/barchan/build/preload/libbarchan-summary.so
[ ! -e $summary ] || touch $summary
exec barchan bench paper "$@" --rounds "${ROUNDS:-3}" --no-build --json /tmp/paper.json --html /tmp/paper.html
