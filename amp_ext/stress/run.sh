#!/bin/sh
# Compiles the stress programs of ring and segments and runs them under ThreadSanitizer, then under
# Address- and UndefinedBehaviorSanitizer. After a report, a wrong byte or a hang the exit code is not
# 0. CC is the compiler.
#
#   amp_ext/stress/run.sh [messages] [kills]
#
# ThreadSanitizer runs with so many messages, and a tenth as many rounds of wake-ups. The other two
# run with a tenth of both, because what they look for does not depend on timing. `kills` writers
# are killed at each step in turn, and as many while the ring is read.
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
    "${CC:-cc}" -std=c11 -O2 -g -Wall -Wextra -Werror -pthread \
        -fsanitize="$1" -fno-sanitize-recover=all \
        -o "$work/segment_stress" "$here/segment_stress.c"
    "$work/segment_stress" $(($2 / 50 + 1))
}

export TSAN_OPTIONS=halt_on_error=1 ASAN_OPTIONS=detect_stack_use_after_return=1
try thread "$messages"
try address,undefined $((messages / 10 + 1))
