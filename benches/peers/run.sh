#!/usr/bin/env bash
# Sets up the peers in directories of their own, builds, and compares: `benches/peers/run.sh --help` has the options.
set -euo pipefail
cd "$(dirname "$0")"

if ! cmp -s requirements.txt .venv/installed; then
    python3 -m venv .venv
    # ggml is compiled for this machine; nothing but the libraries is needed.
    CMAKE_ARGS="-DLLAVA_BUILD=OFF" .venv/bin/pip install --quiet -r requirements.txt
    cp requirements.txt .venv/installed
fi

# Ours as its users get it; candle as its own configuration has it, for this machine alone.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --quiet --release --bin ours
RUSTFLAGS="-C target-cpu=native" cargo build --quiet --release --bin candle --target-dir "$CARGO_TARGET_DIR/native"

exec .venv/bin/python compare.py "$@"
