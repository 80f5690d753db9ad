#!/bin/sh
# run.sh BUILD SECONDS: each reader for its share of the seconds, as many at once as there are cores, from BUILD/seeds and what earlier runs have found (BUILD/corpus).
# A line of figures for each on stdout; fails with the path of the input, where one is found. CLANG: the folder that clang.sh has made.
set -eu
build=$1 seconds=$2
readers="manifest joined chain tokenizer"
share=$((seconds / 4))
[ "$share" -gt 0 ] || share=1
# An array beyond memory is refused by an Error, as the allocator says so; any other allocation of that size is a finding.
export ASAN_OPTIONS=allocator_may_return_null=1:max_allocation_size_mb=32
[ ! -x "${CLANG:-}/bin/llvm-symbolizer" ] || export ASAN_SYMBOLIZER_PATH="$CLANG/bin/llvm-symbolizer"
[ ! -w /dev/shm ] || TMPDIR=/dev/shm  # inputs are written as files
TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/moetrt-fuzz-XXXXXX")
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
mkdir -p "$build/findings"
# fuzz READER
fuzz() {
  log=$build/$1.log
  mkdir -p "$build/corpus/$1"
  if "$build/fuzz/moetrt-fuzz-$1" -max_total_time="$share" -timeout=10 -rss_limit_mb=2048 -max_len=65536 -mutate_depth=2 -print_final_stats=1 \
    -dict="$(dirname "$0")/words.dict" -artifact_prefix="$build/findings/$1-" "$build/corpus/$1" "$build/seeds/$1" >"$log" 2>&1; then
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    echo "$1: $executions executions in $share s, $(sed -n 's/.* \(cov: [0-9]* ft: [0-9]*\) corp: \([0-9]*\).*/\1 corpus: \2/p' "$log" | tail -1), nothing found"
  else
    touch "$TMPDIR/failed"
    grep -A 30 -m 1 -e ERROR -e error: -e 'terminate called' "$log" >&2 || tail -20 "$log" >&2
    found=$(sed -n 's/.*Test unit written to //p' "$log" | tail -1)
    echo "$1: ${found:+found }${found:-ended early}; the whole log is $log" >&2
  fi
}
started=0
for reader in $readers; do
  fuzz "$reader" &
  started=$((started + 1))
  [ $((started % $(nproc))) -ne 0 ] || wait
done
wait
[ ! -e "$TMPDIR/failed" ]
