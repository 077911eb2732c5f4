#!/bin/bash
# The tests with a Python built against musl, the C library of Alpine Linux. `make test-musl` runs it
# on Debian, as root: the first time it builds that Python, from Debian's sources, in five minutes.
#     tests/musl.sh [OPTION OF PYTEST ...]
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
built=${MUSL:-/var/tmp/ipc-musl}
prefix=$built/prefix
python=$prefix/bin/python3

if [ ! -e "$built/.done" ]; then
    mkdir -p "$built/lists/partial" "$built/include" "$built/wheels" "$built/sources"
    cd "$built"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        build-essential dpkg-dev linux-libc-dev musl-tools
    # The sources of what Debian has itself, with a list of its own, so that the machine's stays.
    [ ! -e /etc/apt/sources.list ] || sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >sources/old.list
    file=/etc/apt/sources.list.d/debian.sources
    [ ! -e $file ] || sed 's/^Types:.*/Types: deb-src/' $file >sources/debian.sources
    apt=(apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$built/sources"
        -o "Dir::State::lists=$built/lists")
    "${apt[@]}" update
    version=$(/usr/bin/python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    "${apt[@]}" source --tar-only --download-only "$version" zlib libffi
    for archive in *.orig.tar.*; do tar xf "$archive"; done

    # The headers of the kernel without those of glibc, which Python's setup.py looks for too.
    ln -sfn /usr/include/linux /usr/include/asm-generic include/
    ln -sfn "/usr/include/$(dpkg-architecture -qDEB_HOST_MULTIARCH)/asm" include/asm
    cat >cc <<EOF
#!/bin/bash
for argument; do
    case \$argument in
        --print-multiarch) exit ;;
        -I/usr/* | -L/usr/* | -L/lib/*) ;;
        *) arguments+=("\$argument") ;;
    esac
done
exec musl-gcc -w -idirafter $built/include "\${arguments[@]}"
EOF
    chmod +x cc
    export CC=$built/cc
    (
        cd zlib*/
        CFLAGS='-O2 -fPIC' ./configure --static --prefix="$prefix"
        make -j2 libz.a
        install -D -t "$prefix/lib" libz.a
        install -D -t "$prefix/include" zlib.h zconf.h
        cd ../libffi*/
        ./configure --prefix="$prefix" --disable-shared --with-pic --disable-docs \
            --disable-multi-os-directory
        make -j2 install
        cd ../Python*/
        ./configure --prefix="$prefix" CFLAGS="-I$prefix/include" \
            LDFLAGS="-L$prefix/lib -L$prefix/lib64" --without-ensurepip --disable-test-modules
        make -j2 install
    ) >log 2>&1 || { tail -20 log && exit 1; }

    # That Python has no TLS, so that another one's pip fetches what it needs.
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    pip=("$root/.venv/bin/python" -m pip download -q --disable-pip-version-check -d wheels)
    grep -E '^(pytest|pexpect)' "$root/tests/requirements.txt" >requirements
    "${pip[@]}" -r requirements pip setuptools wheel
    "${pip[@]}" --no-deps --no-binary :all: -r "$root/requirements.txt"
    "${pip[@]}" --no-deps --only-binary :all: --python-version "$version" \
        --platform "musllinux_1_2_$(uname -m)" "$(grep '^hypothesis' "$root/tests/requirements.txt")" sortedcontainers
    pip=(wheels/pip-*.whl)  # which runs as it is, a folder in it being a program
    "$python" "${pip[0]}/pip" install -q --no-index --find-links wheels \
        pip setuptools wheel -r requirements hypothesis
    "$python" -m pip install -q --no-index --find-links wheels --no-build-isolation \
        -r "$root/requirements.txt"
    touch .done
    cd "$root"
fi

# Not the tests of what has nothing to do with the C library, and brings a Python of its own.
# shellcheck disable=SC2016 # for the inner shell
exec unshare --mount --ipc --pid --fork --mount-proc sh -ec '
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    mkdir -p /dev/mqueue
    mount -t mqueue mqueue /dev/mqueue
    exec "$0" -m pytest -q -p no:cacheprovider -n 4 --dist loadgroup --ignore=tests/test_make.py \
        --ignore=tests/test_systemd.py --ignore=tests/test_bench.py "$@" tests' "$python" "$@"
