// In place of tensorrt_opener.cpp where TensorRT's headers were not given to cmake.
#include "backends.hpp"
#include "moetrt/error.hpp"

namespace moetrt {

std::unique_ptr<Opener> tensorrt_opener(const std::vector<Manifest>& ranks, const std::filesystem::path&) {
  throw Error(ranks.front().folder.string() + " holds engines of tensorrt, which this runtime cannot run: it was built without TensorRT's headers.",
              "Give cmake -DTENSORRT_ROOT=FOLDER, or build the engines with --backend ort to run here.");
}

}  // namespace moetrt
