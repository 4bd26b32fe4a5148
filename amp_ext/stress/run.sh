#!/bin/sh
# Compiles the ring's stress program and runs it under ThreadSanitizer, then under Address- and
# UndefinedBehaviorSanitizer. Any report, wrong byte or hang is a non-zero exit. CC is the compiler.
#
#   amp_ext/stress/run.sh [messages] [kills]     a tenth as many wake-ups as messages
set -eu

messages=${1:-2000000}
kills=${2:-500}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for sanitizer in thread address,undefined; do
    echo "-fsanitize=$sanitizer"
    "${CC:-cc}" -std=c11 -O2 -g -Wall -Wextra -Werror -pthread \
        -fsanitize="$sanitizer" -fno-sanitize-recover=all \
        -o "$work/ring_stress" "$here/ring_stress.c"
    export TSAN_OPTIONS=halt_on_error=1 ASAN_OPTIONS=detect_stack_use_after_return=1
    "$work/ring_stress" threads "$messages"
    "$work/ring_stress" wakes $((messages / 10 + 1))
    "$work/ring_stress" kills "$kills"
done
