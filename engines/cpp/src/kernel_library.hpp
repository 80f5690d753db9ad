// The library of our own kernels that engines were built with: found, held against what the ranks record, and opened.
#pragma once

#include <filesystem>
#include <vector>

#include "moetrt/manifest.hpp"

namespace moetrt {

// The function by which a library tells its version, by what it is for.
constexpr const char* kPluginsVersion = "moetrt_plugins_version";  // TensorRT
constexpr const char* kOpsVersion = "moetrt_ops_version";          // ONNX Runtime

// The library of a set, its absolute path; empty where no rank was built with one. Nothing of a file is run before its hash is the recorded one;
// after that it stays open for as long as the process lives.
// :param given: by the user; when empty, the file of the recorded name in the folder of the engines.
// :param version: the function that tells the library's.
// Throws Error: it is not there, not the one of the engines, or one is given that they do not need.
std::filesystem::path find_kernel_library(const std::vector<Manifest>& ranks, const std::filesystem::path& given, const char* version);

}  // namespace moetrt
