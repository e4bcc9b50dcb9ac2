#!/bin/sh
# Installs what the test with real Erlang peers needs, if it is missing (Debian, as root).
set -eu
command -v escript >/dev/null || { apt-get update && apt-get install -y --no-install-recommends erlang-base; }
