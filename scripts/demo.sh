#!/usr/bin/env bash
# Raw text to chat model on this machine: sets everything up, then runs scripts/demo.py. Run again, it goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_setup.sh
install "" demo
# glibc returns large blocks to the system and faults them in again at every step; keeping them saves a fifth of SFT.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296
exec .venv/bin/python scripts/demo.py "$@"
