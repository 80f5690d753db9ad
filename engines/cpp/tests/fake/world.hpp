// What the fake libraries share.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace fake {

using Graph = std::vector<std::function<bool()>>;

struct Stream {
  std::optional<Graph> captured;  // while it is being captured
};

// Ranks that meet: each waits for all, or for the abort.
struct Group {
  explicit Group(int ranks) : size(ranks) {}
  bool sum(double& value);

  std::mutex lock;
  std::condition_variable met;
  int size, arrived = 0, rounds = 0;
  double total = 0, result = 0;
  bool aborted = false;
};

struct Communicator {
  std::shared_ptr<Group> group;
  int rank;
};

struct World {
  std::mutex lock;
  std::string calls;
  int devices = 1;
  void tell(const std::string& call);
};

World& world();

}  // namespace fake
