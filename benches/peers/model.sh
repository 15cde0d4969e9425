#!/usr/bin/env bash
# Sets up llama.cpp and its converter, builds, and compares whole models: `benches/peers/model.sh --help` has the options.
set -euo pipefail
cd "$(dirname "$0")"
. ./setup.sh

# The converter is in the source package and nowhere else.
version=$(sed -n 's/^llama-cpp-python==//p' requirements.txt)
source=.data/llama.cpp-$version
if [ ! -d "$source/gguf-py" ]; then
    mkdir -p "$source"
    .venv/bin/pip download --quiet --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version" -d .data
    tar -xzf ".data/llama_cpp_python-$version.tar.gz" -C "$source" --strip-components=3 --wildcards \
        '*/vendor/llama.cpp/convert_hf_to_gguf.py' '*/vendor/llama.cpp/conversion/*' '*/vendor/llama.cpp/gguf-py/*'
fi

cargo build --quiet --release --bin ours_model
exec .venv/bin/python compare_models.py "$@"
