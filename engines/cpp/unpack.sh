#!/bin/sh
# unpack.sh FOLDER SUITE PACKAGE…: Debian packages of a suite, unpacked into a folder of its own from the machine's mirror. Nothing is installed.
set -eu
folder=$1 suite=$2
shift 2
command -v apt-get >/dev/null && command -v dpkg >/dev/null || { echo "unpack.sh: this is no Debian machine." >&2; exit 1; }
rm -rf "$folder"
mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial" "$folder/apt/sources"
folder=$(cd "$folder" && pwd)
state=$folder/apt
mirror=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -n 's/^URIs: *\([^ ]*\).*/\1/p' | head -1)
[ -n "$mirror" ] || mirror=$(sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) .*/\2/p' /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | head -1)
printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' "$mirror" "$suite" >"$state/sources/suite.sources"
apt() { apt-get -qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$state/sources" -o Dir::State::Lists="$state/lists" -o Dir::Cache="$state/cache" -o APT::Sandbox::User="$(id -un)" "$@"; }
apt update
cd "$state"
apt download "$@"
for package in ./*.deb; do dpkg -x "$package" "$folder"; done
rm -rf "$state"
