#!/usr/bin/env bash
# Runs every fuzz target of the module for a short while, one after the other.
#
#   scripts/fuzz.sh [TIME]    TIME as go test -fuzztime takes it; 60000x if not given
set -euo pipefail
cd "$(dirname "$0")/.."

go=${GO:-go}
time=${1:-60000x}
targets=0
# Only a package with such a line needs to be built and asked for its targets.
for dir in $(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n1 dirname | sort -u); do
	listed=$("$go" test -list '^Fuzz' "$dir") # on its own line, so that a failure counts
	for target in $(grep '^Fuzz' <<<"$listed"); do
		targets=$((targets + 1))
		echo "fuzz: $dir $target for $time"
		"$go" test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 1s "$dir"
	done
done
if [ $targets = 0 ]; then
	echo "fuzz: no fuzz target found" >&2
	exit 1
fi
echo "fuzz: $targets targets"
