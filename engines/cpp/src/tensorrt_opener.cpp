#include <numeric>

#include "backends.hpp"
#include "cuda.hpp"
#include "kernel_library.hpp"
#include "moetrt/error.hpp"
#include "tensorrt_communicator.hpp"
#include "tensorrt_session.hpp"

namespace moetrt {
namespace {

// Ranks and their devices: one each; stages share theirs where there are not so many, tensor ranks of a stage never.
class TensorRtOpener : public Opener {
 public:
  TensorRtOpener(const std::vector<Manifest>& ranks, const std::filesystem::path& given) : tensor_(ranks.front().tensor), together_(ranks.size() > 1) {
    const Manifest& first = ranks.front();
    const std::string folder = first.folder.parent_path().string();
    if (tensor_ > 1 && !ranks_can_meet())
      throw Error(folder + " holds engines whose ranks meet inside TensorRT, which takes TensorRT 11 or newer; this library was built with headers of " +
                      std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) + ".",
                  "Build it with -DTENSORRT_ROOT of TensorRT 11, or the engines with one tensor rank.");
    const int devices = cuda::devices();
    if (devices < tensor_)
      throw Error(folder + " holds engines of " + std::to_string(tensor_) + " tensor rank(s), a CUDA device each; there are " + std::to_string(devices) + " here.",
                  "Run where there are enough, or build with --backend ort.");
    const std::filesystem::path library = find_kernel_library(ranks, given, kPluginsVersion);
    const bool apart = devices >= tensor_ * first.pipeline;
    for (int stage = 0; stage < first.pipeline; ++stage) {
      std::vector<int> theirs(static_cast<std::size_t>(tensor_));
      std::iota(theirs.begin(), theirs.end(), apart ? stage * tensor_ : 0);
      const auto ring = tensor_ > 1 ? std::make_shared<Ring>(theirs) : nullptr;
      for (int place = 0; place < tensor_; ++place)
        seats_.push_back({theirs[static_cast<std::size_t>(place)], ring, static_cast<std::size_t>(place), ranks.at(seats_.size()).plugins ? library : std::filesystem::path()});
    }
  }

  std::unique_ptr<Session> open(const Opening& opening, const Manifest& rank) override { return open_tensorrt(opening, seats_.at(static_cast<std::size_t>(rank.rank))); }
  [[nodiscard]] bool together() const override { return together_; }
  void prepare() override {
    for (const Seat& seat : seats_)
      if (seat.ring) seat.ring->prepare();
  }
  void release() noexcept override {
    for (const Seat& seat : seats_)
      if (seat.ring) seat.ring->abort();
  }

 private:
  int tensor_;
  bool together_;
  std::vector<Seat> seats_;
};

}  // namespace

std::unique_ptr<Opener> tensorrt_opener(const std::vector<Manifest>& ranks, const std::filesystem::path& plugins) { return std::make_unique<TensorRtOpener>(ranks, plugins); }

}  // namespace moetrt
