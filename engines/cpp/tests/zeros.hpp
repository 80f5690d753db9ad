// Sessions without engines: they give zeros of the shapes that were recorded, so that a chain can be held to its records alone.
#pragma once

#include <memory>

#include "moetrt/session.hpp"
#include "ports.hpp"

class Zeros : public moetrt::Session {
 public:
  explicit Zeros(const moetrt::Opening& opening) : opening_(opening), ports_(opening_.signature, opening.graph.string()) {}

  void run(moetrt::Values& values, const moetrt::States& states) override {
    static_cast<void>(ports_.key(values));
    const moetrt::Sizes sizes = ports_.sizes(values);
    for (const auto& [input, output] : ports_.states) static_cast<void>(ports_.state(input, states.buffers));
    for (const moetrt::Tensor* result : ports_.results) values[result->name] = moetrt::Array(result->dtype, ports_.shape(*result, sizes));
  }

 private:
  moetrt::Opening opening_;
  moetrt::Ports ports_;
};

class ZerosOpener : public moetrt::Opener {
 public:
  std::unique_ptr<moetrt::Session> open(const moetrt::Opening& opening, const moetrt::Manifest&) override { return std::make_unique<Zeros>(opening); }
};
