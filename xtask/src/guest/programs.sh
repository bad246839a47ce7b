#!/bin/sh
# Unmodified programs in `barchan run --dune`, in a guest: output and exit status as natively.
#
# Each test says with which status the program ends natively and a text that it prints then, so that "not
# found" is never equal to "not found". xtask/src/kmod.rs brings the programs.

export PATH=/usr/bin:/bin BARCHAN_ROOT=/barchan PYTHONDONTWRITEBYTECODE=1

passed=0
failed=0

# same NAME STATUS TEXT COMMAND...
same() {
    name=$1 status=$2 text=$3
    shift 3
    why=
    "$@" >/tmp/native 2>/tmp/native-errors
    native=$?
    if [ $native -ne "$status" ] || ! grep -q "$text" /tmp/native; then
        why="natively: status $native, $(cat /tmp/native /tmp/native-errors)"
    else
        rm -f /tmp/stats
        barchan run --dune --stats /tmp/stats -- "$@" >/tmp/guest 2>/tmp/guest-errors
        guest=$?
        if [ $guest -ne $native ]; then
            why="status $guest, natively $native"
        elif ! cmp /tmp/native /tmp/guest; then
            why="another output"
        elif ! grep -q '"exits": *[1-9]' /tmp/stats; then
            why="it was not in guest mode"
        fi
        [ -z "$why" ] || cat /tmp/guest /tmp/guest-errors
    fi
    if [ -z "$why" ]; then
        echo "test program_$name ... ok"
        passed=$((passed + 1))
    else
        echo "# $name: $why"
        echo "test program_$name ... FAILED"
        failed=$((failed + 1))
    fi
}

same a_shell_pipeline 3 '^e$' bash -c \
    'for i in 1 2 3 4 5; do echo $i | cat | tr 1-9 a-i; done; seq 300 | sort -r | sort -n | md5sum; exit 3'

same cpython 5 '^24 9 forked$' python3 -I -S -c '
import os, threading
out = []
threads = [threading.Thread(target=lambda i=i: out.append(i * i)) for i in range(1, 4)]
[t.start() for t in threads]
[t.join() for t in threads]
print(sorted(out), {str(n): n for n in range(20)}["7"], flush=True)
pid = os.fork()
if pid == 0: os._exit(9)
print(sum(out) + 10, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "forked")
raise SystemExit(5)
'

same gcc 4 '^made$' bash -c \
    'cd /tmp && printf "int puts(const char *);\nint main(void) { puts(\"made\"); return 4; }\n" >a.c &&
     gcc -O1 a.c -o a && ./a'

echo "test result: $([ $failed -eq 0 ] && echo ok || echo FAILED). $passed passed; $failed failed; 0 ignored"
[ $failed -eq 0 ] && [ $passed -gt 0 ]
