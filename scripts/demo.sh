#!/usr/bin/env bash
# Raw text to chat model on this machine: sets everything up, then runs scripts/demo.py. Run again, it goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/_setup.sh
install "" demo
exec .venv/bin/python scripts/demo.py "$@"
