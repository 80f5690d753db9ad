// The libraries of plugins that engines were built with: found, held against what the ranks record, and given to TensorRT.
#pragma once

#include <NvInfer.h>

#include <filesystem>
#include <vector>

#include "moetrt/manifest.hpp"

namespace moetrt {

// Each rank's library, its absolute path; empty where it was built without. Nothing of a file is run before its hash is the recorded one.
// :param given: by the user; when empty, the file of the recorded name in the folder of the engines.
// Throws Error: a library is not there, or not the one of the engines.
std::vector<std::filesystem::path> find_plugins(const std::vector<Manifest>& ranks, const std::filesystem::path& given);

// Gives a library to a runtime, whose registry no other runtime sees: before it deserialises, and once for each. False: TensorRT refuses; its log says why.
bool load_plugins(nvinfer1::IRuntime& runtime, const std::filesystem::path& library);

}  // namespace moetrt
