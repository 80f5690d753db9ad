#!/bin/sh
# What the C++ runtime is compiled with, into a folder: headers of ONNX Runtime, nlohmann/json, doctest and Oniguruma in include/, and
# Oniguruma's library, which moetrt-run opens to read text, in lib/. Nothing is installed.
# They are Debian packages of a newer suite than the machine may have: the machine's own mirror serves them.
set -eu
folder=$1
suite=${2:-trixie}
ready=$folder/.ready-2  # a number for each list of packages
[ -f "$ready" ] && exit 0
command -v apt-get >/dev/null && command -v dpkg >/dev/null || { echo "dependencies.sh: this is no Debian machine; give cmake MOETRT_INCLUDE, a folder with onnxruntime/, nlohmann/, doctest/ and oniguruma.h." >&2; exit 1; }
state=$folder/apt
rm -rf "$folder"
mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$state/sources"
state=$(cd "$state" && pwd)
mirror=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -n 's/^URIs: *\([^ ]*\).*/\1/p' | head -1)
[ -n "$mirror" ] || mirror=$(sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) .*/\2/p' /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | head -1)
printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' "$mirror" "$suite" >"$state/sources/suite.sources"
apt() { apt-get -qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$state/sources" -o Dir::State::Lists="$state/lists" -o Dir::Cache="$state/cache" -o APT::Sandbox::User="$(id -un)" "$@"; }
apt update
cd "$state"
apt download libonnxruntime-dev nlohmann-json3-dev doctest-dev libonig-dev libonig5
for package in ./*.deb; do dpkg -x "$package" unpacked; done
cd - >/dev/null
mkdir -p "$folder/include" "$folder/lib"
cp -r "$state/unpacked/usr/include/." "$folder/include/"
cp -L "$state/unpacked/usr/lib/"*/libonig.so.5 "$folder/lib/"
rm -rf "$state"
touch "$ready"
