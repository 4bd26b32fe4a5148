#!/bin/sh
# Compiles the ring's stress program and runs it under ThreadSanitizer, then under Address- and
# UndefinedBehaviorSanitizer. Any report, wrong byte or hang is a non-zero exit. CC is the compiler.
#
#   amp_ext/stress/run.sh [messages] [kills]
#
# Messages are for ThreadSanitizer, a tenth of them for wake-ups, and a tenth of both for the other
# two, which look for what does not depend on luck. Kills are in turn at each step, then at random.
set -eu

messages=${1:-2000000}
kills=${2:-500}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# try SANITIZER MESSAGES
try() {
    echo "-fsanitize=$1"
    "${CC:-cc}" -std=c11 -O2 -g -Wall -Wextra -Werror -pthread \
        -fsanitize="$1" -fno-sanitize-recover=all \
        -o "$work/ring_stress" "$here/ring_stress.c"
    "$work/ring_stress" threads "$2"
    "$work/ring_stress" wakes $(($2 / 10 + 1))
    "$work/ring_stress" steps "$kills"
    "$work/ring_stress" kills "$kills"
}

export TSAN_OPTIONS=halt_on_error=1 ASAN_OPTIONS=detect_stack_use_after_return=1
try thread "$messages"
try address,undefined $((messages / 10 + 1))
