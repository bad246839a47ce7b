#!/bin/sh
# The patched collector in guest mode, in a guest: bdwgc's own test programs, and real programs, which must print what
# they print natively, each with each source of dirty bits of $SOURCES, generational and incremental with pauses of
# $PAUSE_MS. Arguments: only tests whose names contain one of them. xtask/src/guest/collector.rs brings what is needed.

export PATH=/usr/bin:/bin BARCHAN_ROOT=/barchan
# There is no compiler in the guest: what was brought is newer than its source.
touch /barchan/build/preload/libbarchan-summary.so
# Seconds for each; Bochs simulates one in about half a second.
limit=${LIMIT:-7200}
wanted=$*
passed=0
failed=0
filtered=0

is_wanted() {
    [ -n "$wanted" ] || return 0
    for part in $wanted; do
        case $1 in
        *"$part"*) return 0 ;;
        esac
    done
    return 1
}

# What the first process of the statistics has as $1; that is the program itself.
figure() {
    sed -n "s/^ *\"$1\": *\"\{0,1\}\([^\",]*\).*/\1/p" /tmp/stats | head -n 1
}

# What each thread of a program is at, for whoever has to find out why it does not end.
show_tasks() {
    for pid in $(pidof "$1"); do
        for task in "/proc/$pid/task/"*; do
            echo "# $1 ${task##*/}: $(cut -d ' ' -f 3,14,15 "$task/stat"), $(cat "$task/wchan"), system call" \
                "$(cut -d ' ' -f 1-4 "$task/syscall")"
        done
    done >&2
}

# run SOURCE MODE COMMAND...: its output is in /tmp/out and /tmp/errors; says what is wrong, if anything is.
run() {
    source=$1 mode=$2 file=${3##*/}
    shift 2
    rm -f /tmp/stats
    set -- --tracker "$source" --mode "$mode" $([ "$mode" = generational ] || echo --pause-ms "$PAUSE_MS") -- "$@"
    timeout -s KILL "$limit" barchan run --dune --stats /tmp/stats "$@" >/tmp/out 2>/tmp/errors
    status=$?
    if [ ! -e /tmp/stats ]; then
        show_tasks "$file"
        killall -9 "$file" 2>/dev/null
        echo "status $status, and no statistics: it may have had its $limit s"
    elif [ $status -ne 0 ]; then
        echo "status $status"
    elif ! [ "$(figure exits)" -gt 0 ]; then
        echo "it was not in guest mode"
    fi
}

# Whether dirty bits were used, of the wanted source.
tracked() {
    if [ "$(figure source)" != "$1" ]; then
        echo "its source is $(figure source)"
    elif ! [ "$(figure pages_armed)" -gt 0 ]; then
        echo "no page was armed"
    fi
}

# bdwgc SOURCE MODE PROGRAM
bdwgc() {
    # It is about dirty bits, so none of the collections that need none.
    export GC_BARCHAN_POLICY=partial
    left=$([ "$2" = incremental ] && echo 2 || echo 0)
    while why=$(run "$1" "$2" "/collector/bdwgc/$3") && [ -n "$why" ] && [ "$left" -gt 0 ] &&
        cat /tmp/out /tmp/errors | grep -q 'Unexpected heap growth'; do
        echo "# again: the heap outgrew gctest's bound" >&2
        left=$((left - 1))
    done
    unset GC_BARCHAN_POLICY
    case $3 in
    # They must have had pages armed.
    gctest | dirtybitstest) [ -n "$why" ] || why=$(tracked "$1") ;;
    esac
    echo "$why"
}

# real SOURCE MODE PROGRAM
real() {
    cd /collector || return
    why=$(run "$1" "$2" $(cat "$3.command"))
    [ -n "$why" ] || why=$(tracked "$1")
    [ -n "$why" ] || cmp "$3.expected" /tmp/out >&2 || why="another output"
    echo "$why"
}

# each KIND PROGRAM
each() {
    for source in $SOURCES; do
        for mode in generational incremental; do
            name=collector_$2_${source}_$mode
            if ! is_wanted "$name"; then
                filtered=$((filtered + 1))
                continue
            fi
            start=$(date +%s)
            mkdir -p /tmp/work
            why=$(cd /tmp/work && "$1" "$source" "$mode" "$2")
            rm -rf /tmp/work
            if [ -z "$why" ]; then
                echo "test $name ... ok"
                passed=$((passed + 1))
            else
                cat /tmp/out /tmp/errors
                echo "# $name: $why"
                echo "test $name ... FAILED"
                failed=$((failed + 1))
            fi
            echo "# $(($(date +%s) - start)) s"
        done
    done
}

for program in $(cat /collector/upstreams); do
    each bdwgc "$program"
done
for command in /collector/*.command; do
    program=${command##*/}
    each real "${program%.command}"
done

echo "test result: $([ $failed -eq 0 ] && echo ok || echo FAILED). $passed passed; $failed failed; 0 ignored;" \
    "0 measured; $filtered filtered out"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
