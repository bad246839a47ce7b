#!/bin/sh
# `barchan bench paper` in a guest, with this script's arguments: for each WORKLOAD:SCALE of $CASES its Table 6, or
# Tables 2 and 3 if there is none. Dune's tables again, in Bochs as counts of instructions. `cargo xtask paper` brings
# what is needed into the guest.

export PATH=/usr/bin:/bin BARCHAN_ROOT=/barchan
cd /tmp || exit 1
mkdir -p /barchan/build
# There is no compiler in the guest: what was brought is newer than its source.
summary=/barchan/build/preload/libbarchan-summary.so
[ ! -e $summary ] || touch $summary

# paper NAME OPTIONS...
paper() {
    name=$1
    shift
    barchan bench paper "$@" --rounds "${ROUNDS:-1}" --no-build --json "/tmp/paper-$name.json" --html /tmp/paper.html
}

[ -n "$CASES" ] || { paper micro --only micro "$@"; exit; }
failed=0
for case in $CASES; do
    paper "${case%:*}" --only collector --workload "${case%:*}" --scale "${case#*:}" "$@" || failed=1
done
exit $failed
