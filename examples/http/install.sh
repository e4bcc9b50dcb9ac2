#!/bin/sh
# Installs the load generators that the tests use, on Debian and its relatives, unless they are there.
set -e
for tool in curl wrk; do
	command -v "$tool" >/dev/null || missing="$missing $tool"
done
[ -z "$missing" ] || { apt-get update && apt-get install -y --no-install-recommends $missing; }
