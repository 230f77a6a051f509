#!/usr/bin/env bash
# A Synapse module mounts a resource two levels below /_matrix/client, on a listener whose `client` resource is compressed.
#
# Guess:  as without compression: Synapse starts, and the module's resource is not reached, because Synapse's own resource
#         for clients takes all that is below it.
# Seen:   Synapse 1.163.2 does not start. It ends with an AttributeError: the wrapper that compresses has no `listNames`,
#         which Synapse asks for while it attaches what modules bring (synapse/util/httpresourcetree.py).
# Hurts:  operators with `compress: true`, the moment such a module is loaded; the log names neither module nor option.
set -euo pipefail

VERSION=1.163.2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check "matrix-synapse==$VERSION"

cat >"$folder/below.py" <<'PYTHON'
from twisted.web.resource import Resource


class Module:
    def __init__(self, config, api):
        api.register_web_resource("/_matrix/client/v1/example", Resource())

    @staticmethod
    def parse_config(config):
        return config
PYTHON

# Start Synapse with `compress` as given; print what became of it: a status of the module's path, or why it ended.
start() {
    local compress=$1 port log="$folder/$1.log"
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    cat >"$folder/$compress.yaml" <<YAML
server_name: example.localhost
report_stats: false
macaroon_secret_key: secret
signing_key_path: $folder/signing.key
trusted_key_servers: []
enable_media_repo: false
database: {name: sqlite3, args: {database: $folder/$compress.db}}
listeners:
  - {port: $port, bind_addresses: [127.0.0.1], type: http, resources: [{names: [client], compress: $compress}]}
modules: [{module: below.Module, config: {}}]
YAML
    PYTHONPATH=$folder "$folder/env/bin/python" -m synapse.app.homeserver -c "$folder/$compress.yaml" \
        --generate-keys >"$log" 2>&1
    PYTHONPATH=$folder "$folder/env/bin/python" -m synapse.app.homeserver -c "$folder/$compress.yaml" >>"$log" 2>&1 &
    local pid=$!
    for _ in $(seq 240); do
        if ! kill -0 "$pid" 2>/dev/null; then
            grep -o "^AttributeError: .*" "$log" | tail -1
            return
        fi
        if python3 - "$port" 2>/dev/null <<'PYTHON'; then
import sys
import urllib.error
import urllib.request

base = f"http://127.0.0.1:{sys.argv[1]}"
urllib.request.urlopen(f"{base}/health")
try:
    print(urllib.request.urlopen(f"{base}/_matrix/client/v1/example").status)
except urllib.error.HTTPError as error:
    print(error.code)
PYTHON
            kill "$pid"
            wait "$pid" || true
            return
        fi
        sleep 0.5
    done
    kill "$pid"
    echo "no answer"
}

plain=$(start false)
compressed=$(start true)
echo "Synapse $VERSION"
echo "not compressed: the module's path is answered with $plain"
echo "compressed:     $compressed"
[ "$plain" = 404 ]
[[ $compressed == *"EncodingResourceWrapper"*"listNames"* ]]
