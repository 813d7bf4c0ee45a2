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
# This processor's instruction sets without its matrix tiles: the mini-PCs that are compared have none, and with GCC 12 that path crashes.
flags=(-DGGML_NATIVE=ON)
if [ "$(uname -m)" = x86_64 ]; then
    has() { if grep -qw "$1" /proc/cpuinfo; then echo ON; else echo OFF; fi; }
    flags=(-DGGML_NATIVE=OFF -DGGML_AVX="$(has avx)" -DGGML_AVX2="$(has avx2)" -DGGML_BMI2="$(has bmi2)" -DGGML_FMA="$(has fma)"
        -DGGML_F16C="$(has f16c)" -DGGML_AVX_VNNI="$(has avx_vnni)" -DGGML_AVX512="$(has avx512f)" -DGGML_AVX512_VBMI="$(has avx512_vbmi)"
        -DGGML_AVX512_VNNI="$(has avx512_vnni)" -DGGML_AVX512_BF16="$(has avx512_bf16)")
fi
venv/bin/cmake -S "llama_cpp_python-$version/vendor/llama.cpp" -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF "${flags[@]}"
venv/bin/cmake --build build --target llama-bench --parallel
echo "built $PWD/build/bin/llama-bench"
