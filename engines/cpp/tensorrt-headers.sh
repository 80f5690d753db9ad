#!/bin/sh
# Headers that TensorRT's session is compiled with where there is no TensorRT, into a folder for cmake -DTENSORRT_ROOT: those of TensorRT 10.14, which a
# Python wheel of another project has inside, and where no CUDA toolkit is installed CUDA's. Nothing is installed, and nothing that runs is among them.
set -eu
folder=$1
[ -f "$folder/.ready" ] && exit 0
python=${PYTHON:-python3}
rm -rf "$folder"
mkdir -p "$folder/wheels" "$folder/include"
wheels=kernel-lens==2.0.1
ls /usr/local/cuda*/include/cuda_runtime_api.h >/dev/null 2>&1 || wheels="$wheels nvidia-cuda-runtime==13.* nvidia-cuda-crt==13.*"
"$python" -m pip download --quiet --no-deps --dest "$folder/wheels" $wheels
for wheel in "$folder"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$folder/unpacked"; done
cp -r "$folder/unpacked/kernel_lens/include/tensorrt/." "$folder/include/"
[ ! -d "$folder/unpacked/nvidia/cu13/include" ] || cp -r "$folder/unpacked/nvidia/cu13/include/." "$folder/include/"
rm -rf "$folder/wheels" "$folder/unpacked"
touch "$folder/.ready"
