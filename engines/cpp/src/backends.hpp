// What opens the engines of each backend.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "moetrt/manifest.hpp"
#include "moetrt/session.hpp"

namespace moetrt {

// Throws Error: this runtime does not run what the ranks' backend made, or not with these options.
std::unique_ptr<Opener> find_opener(const std::vector<Manifest>& ranks, const LoadOptions& options);

// TensorRT's, in a library that was built with its headers; else it throws. Defined in tensorrt_opener.cpp or tensorrt_absent.cpp.
// :param plugins: the library that the user gives, which is found as find_kernel_library says.
std::unique_ptr<Opener> tensorrt_opener(const std::vector<Manifest>& ranks, const std::filesystem::path& plugins);

}  // namespace moetrt
