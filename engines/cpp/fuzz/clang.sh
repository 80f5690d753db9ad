#!/bin/sh
# clang with libFuzzer into a folder, as bin/clang++, and bin/llvm-symbolizer, which tells where a finding lies. Nothing is installed: Debian's packages are unpacked; headers of C and C++ are the machine's.
set -eu
folder=$1
version=${2:-19}
ready=$folder/.ready-$version
[ -f "$ready" ] && exit 0
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
"$(dirname "$0")/../unpack.sh" "$folder" "$suite" "clang-$version" "libclang-cpp$version" "libllvm$version" "libclang-common-$version-dev" "libclang-rt-$version-dev" "llvm-$version" libz3-4 libedit2 libbsd0 libmd0
root=$(cd "$folder" && pwd)
mkdir "$root/bin"
for program in clang++ llvm-symbolizer; do
  printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$(echo "$root"/usr/lib/*-linux-gnu)" "$root/usr/lib/llvm-$version/bin/$program" >"$root/bin/$program"
  chmod +x "$root/bin/$program"
done
echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }' >"$root/empty.cpp"
"$root/bin/clang++" -fsanitize=fuzzer,address,undefined "$root/empty.cpp" -o "$root/empty"  # complains here and now, if anything is not there
touch "$ready"
