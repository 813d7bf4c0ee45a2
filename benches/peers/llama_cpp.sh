#!/usr/bin/env bash
# Builds llama.cpp's llama-bench from the Python index's source package llama-cpp-python, which vendors the whole tree.
#   benches/peers/llama_cpp.sh [FOLDER]      then: LLAMA_CPP_BIN=FOLDER/build/bin make bench-main
# Needs python3 with venv and a C++ compiler; takes minutes. FOLDER defaults to .cache/peers/llama.cpp.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-.cache/peers/llama.cpp}
version=0.3.36
mkdir -p "$folder"
cd "$folder"
[ -x venv/bin/cmake ] || { python3 -m venv venv && venv/bin/pip install --quiet cmake; }
if [ ! -d "llama_cpp_python-$version" ]; then
    venv/bin/pip download --quiet --no-deps --no-binary llama-cpp-python --dest . "llama-cpp-python==$version"
    tar xzf "llama_cpp_python-$version.tar.gz"
fi
venv/bin/cmake -S "llama_cpp_python-$version/vendor/llama.cpp" -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DGGML_NATIVE=ON
venv/bin/cmake --build build --target llama-bench --parallel
echo "built $PWD/build/bin/llama-bench"
