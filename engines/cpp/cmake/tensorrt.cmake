# TensorRT's session. Its headers and CUDA's are all that is needed: the libraries are opened when running.
find_path(TENSORRT_HEADERS NvInfer.h HINTS ${TENSORRT_ROOT} PATH_SUFFIXES include include/tensorrt REQUIRED NO_DEFAULT_PATH)
file(GLOB cuda_folders /usr/local/cuda*/include)
find_path(CUDA_HEADERS cuda_runtime_api.h HINTS ${TENSORRT_ROOT} ${cuda_folders} PATH_SUFFIXES include REQUIRED)
target_sources(moetrt PRIVATE src/nccl.cpp src/tensorrt_communicator.cpp src/tensorrt_opener.cpp src/tensorrt_session.cpp)
target_include_directories(moetrt SYSTEM PRIVATE ${TENSORRT_HEADERS} ${CUDA_HEADERS})
