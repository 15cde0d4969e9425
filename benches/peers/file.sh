#!/usr/bin/env bash
# Sets up llama.cpp, builds, and compares both on one GGUF file: `benches/peers/file.sh --help` has the options.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# The file's name is one of where the command is given.
directory=$PWD
cd "$here"
. ./setup.sh
cargo build --quiet --release --bin ours_model
cd "$directory"
exec "$here/.venv/bin/python" "$here/compare_file.py" "$@"
