# Sourced by demo.sh and test.sh: a virtual environment in .venv with this project in it.
#
# install EXTRAS STAMP: pip runs only when setup.cfg or constraints.txt changed since it last succeeded.

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer found; install one, or set PYTHON=/path/to/python3" >&2
    exit 2
}

install() {
    local extras="$1" stamp=".venv/.installed-$2" key python
    key="$(cat setup.cfg constraints.txt | cksum)"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$key" ]; then
        return
    fi
    if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        python="$(find_python)"
        echo "making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv || {
            echo "error: no virtual environment could be made; Debian and Ubuntu: apt install python3-venv" >&2
            exit 2
        }
    fi
    echo "installing into .venv (a minute or two; torch is large)"
    .venv/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".$extras"
    echo "$key" >"$stamp"
}
