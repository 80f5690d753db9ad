#!/bin/sh
# What the C++ runtime is compiled with, into a folder: headers of ONNX Runtime, nlohmann/json, doctest and Oniguruma in include/, and
# Oniguruma's library, which moetrt-run opens to read text, in lib/. Nothing is installed.
# They are Debian packages of a newer suite than the machine may have: the machine's own mirror serves them.
set -eu
folder=$1
suite=${2:-trixie}
ready=$folder/.ready-2  # a number for each list of packages
[ -f "$ready" ] && exit 0
rm -rf "$folder"
"$(dirname "$0")/unpack.sh" "$folder/unpacked" "$suite" libonnxruntime-dev nlohmann-json3-dev doctest-dev libonig-dev libonig5 || { echo "dependencies.sh: give cmake MOETRT_INCLUDE, a folder with onnxruntime/, nlohmann/, doctest/ and oniguruma.h." >&2; exit 1; }
mkdir -p "$folder/include" "$folder/lib"
cp -r "$folder/unpacked/usr/include/." "$folder/include/"
cp -L "$folder/unpacked/usr/lib/"*/libonig.so.5 "$folder/lib/"
rm -rf "$folder/unpacked"
touch "$ready"
