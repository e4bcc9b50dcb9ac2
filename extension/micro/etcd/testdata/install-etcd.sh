#!/usr/bin/env bash
# Installs etcd's server on Debian and its relatives, if there is none. The tests start one of their own; the system's service is
# not needed, and not started.
set -euo pipefail
command -v etcd >/dev/null && exit 0
sudo=""
[[ $(id -u) == 0 ]] || sudo="sudo"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
# The service may not be started where there is no init system; its configuration fails then.
$sudo env RUNLEVEL=1 apt-get install -y -qq --no-install-recommends etcd-server
