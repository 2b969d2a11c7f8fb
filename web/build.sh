#!/bin/sh
# Build decoder.wasm: `build.sh [OUTPUT]`. Needs Debian's clang, lld, wasi-libc and
# libclang-rt-14-dev-wasm32; the same versions of these give the same bytes.
set -eu
web=$(cd "$(dirname "$0")" && pwd)
output=$(realpath "${1:-$web/decoder.wasm}")
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
cd "$web/../csrc/decoder"
for name in container cursor factors header inflate names sections tail tensor flat; do
    case $name in factors | tensor) level=-O3 ;; *) level=-Os ;; esac # where the time goes
    source=$name.c
    [ "$name" != flat ] || source=../../web/flat.c
    clang --target=wasm32-wasi --sysroot=/usr -std=c99 "$level" -mbulk-memory -I. \
        -c "$source" -o "$objects/$name.o"
done
clang --target=wasm32-wasi --sysroot=/usr -nostartfiles \
    -Wl,--no-entry,--gc-sections,-s,--export=__heap_base "$objects"/*.o -o "$output"
