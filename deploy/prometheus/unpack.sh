#!/bin/sh
# Puts Debian's prometheus and promtool under FOLDER/usr/bin without installing the package: no service, no user, no
# port. Usage: sh deploy/prometheus/unpack.sh FOLDER
set -eu
folder=$1
if [ -x "$folder/usr/bin/promtool" ] || { command -v promtool && command -v prometheus; } >/dev/null; then
  exit 0
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
  echo "error: promtool is missing and this is no Debian: install Prometheus (2.42 or newer), so that promtool and" \
    "prometheus are in PATH" >&2
  exit 1
fi
download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
cd_and_get() { (cd "$download" && apt-get -q -o APT::Sandbox::User=root download prometheus) >"$download/log" 2>&1; }
if ! cd_and_get; then
  if [ "$(id -u)" = 0 ]; then
    apt-get -q update >"$download/log" 2>&1 || true
  fi
  if ! cd_and_get; then
    cat "$download/log" >&2
    echo "error: Debian's package prometheus does not come (apt-get update, as root, may help); or install Prometheus" >&2
    exit 1
  fi
fi
mkdir -p "$folder"
dpkg-deb -x "$download"/prometheus_*.deb "$folder"
"$folder/usr/bin/promtool" --version | head -n 1
