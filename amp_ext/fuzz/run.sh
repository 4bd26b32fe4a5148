#!/bin/sh
# Fuzzes ring.h with arbitrary bytes as the whole mapping; a finding is a non-zero exit, and its
# input stays in the current directory. Needs clang with its runtimes (Debian: clang,
# libclang-rt-14-dev) as CLANG, and PYTHON for the first inputs.
#
#   amp_ext/fuzz/run.sh [seconds] [an input that was found, to run it again]
set -eu

seconds=${1:-60}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${CLANG:-clang}" -std=c11 -O1 -g -Wall -Wextra -Werror \
    -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
    -o "$work/ring_fuzz" "$here/ring_fuzz.c"
if [ $# -gt 1 ]; then
    exec "$work/ring_fuzz" "$2"
fi
mkdir "$work/corpus"
"${PYTHON:-python3}" "$here/seeds.py" "$work/corpus"
# one run may take 5 seconds: none takes a millisecond, so an endless loop is a finding
"$work/ring_fuzz" -max_total_time="$seconds" -timeout=5 -max_len=1024 -use_value_profile=1 \
    -print_final_stats=1 -verbosity=1 "$work/corpus" >"$work/log" 2>&1 || {
    tail -n 60 "$work/log"
    exit 1
}
grep -E '^Done |cov: .*(DONE|INITED)|stat::(number|average)' "$work/log"
