#!/bin/sh
# Installs the Redis tools, and the Redis, that the tests use, on Debian and its relatives, unless they are there.
set -e
for tool in redis-cli redis-benchmark redis-server; do
	command -v "$tool" >/dev/null || missing=yes
done
[ -z "$missing" ] || { apt-get update && apt-get install -y --no-install-recommends redis-tools redis-server; }
