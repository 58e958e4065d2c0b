#!/usr/bin/env bash
# Types every command of docs/quickstart-federation.md, in its order, into one shell that ends at the first failure.
set -euo pipefail
cd "$(dirname "$0")/.."
export HOME="$(mktemp -d /tmp/mt-XXXXXX)" # the document keeps everything below the home folder
finish() {
    for home in "$HOME"/modaltune-quickstart/H?; do modaltune-client stop --home "$home" || true; done
    modaltune-server stop --home "$HOME/modaltune-quickstart/coordinator" || true
    rm -rf "$HOME"
}
trap 'finish >/dev/null 2>&1' EXIT
awk '/^```bash/ { typed = 1; next } /^```/ { typed = 0 } typed' docs/quickstart-federation.md >"$HOME/typed.sh"
bash -e "$HOME/typed.sh"
