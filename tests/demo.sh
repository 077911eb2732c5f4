#!/bin/sh
# The first minute with the six pairs: each command, then what it prints. `make demo` runs it.
set -eu
unset CDPATH # or cd may go elsewhere
case $PYTHON in /*) ;; *) PYTHON=$PWD/$PYTHON ;; esac
cd "$(dirname "$0")/../scripts"

# Of its own: a process id would be that of another demonstration too, in another container.
own=$("$PYTHON" -c 'import os; print(int.from_bytes(os.urandom(3), "big"))' 2>/dev/null)
name=/demo-$own
key=$((1000000 + own))
serving=

# Again, while another Ctrl-C ends it.
removed() {
    "$PYTHON" "$@" --clean || [ $? != 130 ] || removed "$@"
}

# Whatever ends it, a signal, a closed pipe (`make demo | head`) or an error, nothing stays.
clean_up() {
    if [ -n "$serving" ]; then
        kill -KILL "$!" && wait "$!" || true
    fi
    for primitive in msq shm sem; do
        removed "posix_${primitive}_server.py" -n "$name" &
        removed "sysv_${primitive}_server.py" -k "$key" &
    done
    wait
} >/dev/null 2>&1
# A signal that comes before its first line starts it once more.
finish() {
    trap '' INT TERM HUP QUIT PIPE
    trap - EXIT
    clean_up
    exit "$1"
}
trap 'finish $?' EXIT
trap 'finish 130' INT
trap 'finish 143' TERM
trap 'finish 129' HUP
trap 'finish 131' QUIT
trap 'finish 141' PIPE

# Of a closed pipe a shell that traps SIGPIPE would complain.
# shellcheck disable=SC2059 # the format comes from below
print() { printf "$@" 2>/dev/null; }
python() { "$PYTHON" "$@"; }
say() { print '\n# %s\n' "$*"; }
show() {
    print '$ %s\n' "$*"
    "$@"
}
# The process id of the server is $! from the very moment at which there is one.
serve() {
    print '$ %s &\n' "$*"
    shift
    serving=yes
    "$PYTHON" "$@" &
    sleep 0.4
}
stop() {
    kill "$!" && wait "$!"
    serving=
}

for api in posix sysv; do
    if [ $api = posix ]; then
        it="-n $name"
        print '\n==== POSIX ====\n'
    else
        it="-k $key"
        print '\n==== System V ====\n'
    fi

    say "A message queue: the server prints what the client sends."
    # shellcheck disable=SC2086 # $it is an option and its value
    {
        serve python ${api}_msq_server.py $it
        show python ${api}_msq_client.py $it -c 3 -i 0.1 -q
        print '$ echo '\''["any", "JSON"]'\'' | python %s_msq_client.py %s --stdin -q\n' $api "$it"
        echo '["any", "JSON"]' | python ${api}_msq_client.py $it --stdin -q
        sleep 0.2
        stop
    }

    say "Shared memory: the client writes a line, the server prints it while it stands there."
    # shellcheck disable=SC2086
    {
        serve python ${api}_shm_server.py $it -i 0.1 --changes
        print '$ echo "Hello, Zoë" | python %s_shm_client.py %s\n' $api "$it"
        echo "Hello, Zoë" | python ${api}_shm_client.py $it
        sleep 0.3
        if [ $api = posix ]; then
            show head -c 11 /dev/shm$name
            echo
        elif command -v ipcs >/dev/null; then
            print '$ ipcs -m | grep %x\n' "$key"
            ipcs -m | grep "$(printf %x "$key")"
        else
            show grep $key /proc/sysvipc/shm # ipcs is a part of util-linux
        fi
        stop
    }

    say "A semaphore: two may have it, the third is told that it is busy, until one gives back."
    # shellcheck disable=SC2086
    {
        serve python ${api}_sem_server.py $it -i 0.1
        show python ${api}_sem_client.py $it
        show python ${api}_sem_client.py $it
        show python ${api}_sem_client.py $it || true
        show python ${api}_sem_client.py $it --release
        sleep 0.2
        show python ${api}_sem_client.py $it -- echo "this runs while one is held"
        sleep 0.2
        stop
    }
done

say "Everything the demonstration made is removed now. Next: make posix-msq"
