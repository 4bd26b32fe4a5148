#!/bin/sh
# Fuzzes ring.h with arbitrary bytes as the whole mapping. If the fuzzer finds an error, the exit
# code is not 0 and the input stays in the current directory. CLANG names a clang with its runtimes
# (Debian: clang, libclang-rt-dev), and PYTHON the interpreter that makes the first inputs.
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
# A run takes less than a millisecond, so one that takes 5 seconds has an endless loop.
"$work/ring_fuzz" -max_total_time="$seconds" -timeout=5 -max_len=1024 -use_value_profile=1 \
    -print_final_stats=1 -verbosity=1 "$work/corpus" >"$work/log" 2>&1 || {
    tail -n 60 "$work/log"
    exit 1
}
grep -E '^Done |cov: .*(DONE|INITED)|stat::(number|average)' "$work/log"
