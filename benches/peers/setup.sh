# Sourced: the peers in a directory of their own, and where Rust builds.

if ! cmp -s requirements.txt .venv/installed; then
    python3 -m venv .venv
    # ggml is compiled for this machine; nothing but the libraries is needed.
    CMAKE_ARGS="-DLLAVA_BUILD=OFF" .venv/bin/pip install --quiet -r requirements.txt
    cp requirements.txt .venv/installed
fi
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
