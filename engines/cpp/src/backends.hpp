// What opens the engines of each backend.
#pragma once

#include <memory>
#include <vector>

#include "moetrt/manifest.hpp"
#include "moetrt/session.hpp"

namespace moetrt {

// Throws Error: this runtime does not run what the ranks' backend made. :param threads: of the host.
std::unique_ptr<Opener> find_opener(const std::vector<Manifest>& ranks, int threads);

// TensorRT's, in a library that was built with its headers; else it throws. Defined in tensorrt_opener.cpp or tensorrt_absent.cpp.
std::unique_ptr<Opener> tensorrt_opener(const std::vector<Manifest>& ranks);

}  // namespace moetrt
