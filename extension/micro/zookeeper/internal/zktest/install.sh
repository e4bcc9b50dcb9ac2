#!/usr/bin/env bash
# Installs ZooKeeper's server on Debian and its relatives, if there is none, and what runs Java. The tests start one of their own: the package
# zookeeper, with its service, and a graphical Java, is not needed.
set -euo pipefail
[[ -e /usr/share/java/zookeeper.jar ]] && command -v java >/dev/null && exit 0
sudo=""
[[ $(id -u) == 0 ]] || sudo="sudo"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
$sudo apt-get install -y -qq --no-install-recommends libzookeeper-java default-jre-headless
