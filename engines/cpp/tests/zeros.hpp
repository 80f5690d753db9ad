// Sessions without engines: they give zeros of the shapes that were recorded, so that a chain can be held to its records alone.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "moetrt/session.hpp"
#include "ports.hpp"

using Dims = std::vector<std::int64_t>;

class Zeros : public moetrt::Session {
 public:
  explicit Zeros(const moetrt::Opening& opening, std::vector<Dims>* seen) : opening_(opening), ports_(opening_.signature, opening.graph.string()), seen_(seen) {}

  void run(moetrt::Values& values, const moetrt::States& states) override {
    if (seen_) seen_->push_back(values.at("token_ids").shape());
    static_cast<void>(ports_.key(values));
    const moetrt::Sizes sizes = ports_.sizes(values);
    for (const auto& [input, output] : ports_.states) static_cast<void>(ports_.state(input, states.buffers));
    for (const moetrt::Tensor* result : ports_.results) values[result->name] = moetrt::Array(result->dtype, ports_.shape(*result, sizes));
  }

 private:
  moetrt::Opening opening_;
  moetrt::Ports ports_;
  std::vector<Dims>* seen_;
};

// `seen`, where it is given, gets the shape of every step's tokens.
class ZerosOpener : public moetrt::Opener {
 public:
  explicit ZerosOpener(std::vector<Dims>* seen = nullptr) : seen_(seen) {}
  std::unique_ptr<moetrt::Session> open(const moetrt::Opening& opening, const moetrt::Manifest&) override { return std::make_unique<Zeros>(opening, seen_); }

 private:
  std::vector<Dims>* seen_;
};
