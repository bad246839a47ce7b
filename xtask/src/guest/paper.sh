#!/bin/sh
# `barchan bench paper --only micro` in a guest: Tables 2 and 3 of Dune's paper, in Bochs as counts of instructions.
# benches/paper.md has the command that brings `barchan` into the guest.

export PATH=/usr/bin:/bin BARCHAN_ROOT=/barchan
cd /tmp || exit 1
mkdir -p /barchan/build
exec barchan bench paper --only micro --rounds "${ROUNDS:-3}" --no-build --json /tmp/paper.json --html /tmp/paper.html
