#!/usr/bin/env bash
# Sets up the peers in directories of their own, builds, and compares: `benches/peers/run.sh --help` has the options.
set -euo pipefail
cd "$(dirname "$0")"
. ./setup.sh

# Ours as its users get it; candle as its own configuration has it, for this machine alone.
cargo build --quiet --release --bin ours
RUSTFLAGS="-C target-cpu=native" cargo build --quiet --release --features candle --bin candle --target-dir "$CARGO_TARGET_DIR/native"

exec .venv/bin/python compare.py "$@"
