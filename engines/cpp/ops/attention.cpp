#include "attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "products.hpp"
#include "rows.hpp"

namespace moetrt::ops {
namespace {

constexpr std::size_t kSlice = 8192;    // rows, tokens by heads, whose queries are held at a time
constexpr std::size_t kBlock = 64;      // rows that read the cache together
constexpr std::size_t kTogether = 64;   // tokens that are multiplied by a head's matrix together
constexpr std::size_t kChunk = 256;     // positions whose scores are held at a time
constexpr std::size_t kRuns = 8;        // parts of the positions, at most, that are read side by side where tokens are few
constexpr std::size_t kLeastRun = 128;  // positions that are worth a part

using Line = std::vector<float, ByLines<float>>;

// Some tokens of a row that read the cache together.
struct Block {
  std::size_t row;
  std::size_t first;  // token among those of all rows
  std::size_t tokens;
  std::size_t positions;  // that the last of them sees
  std::size_t runs;
};

// A part of the positions for one block.
struct Unit {
  std::size_t block, begin, end;
};

// What a block's rows have of a unit: (rows), (rows), (rows, latent).
struct Part {
  Line most, sums, mixed;
};

struct Scratch {
  Line queries;  // (tokens of the slice, heads, latent + rope)
  std::vector<Block> blocks;
  std::vector<Unit> units;
  std::vector<Part> parts;                                  // of each unit
  std::vector<std::pair<std::size_t, std::size_t>> places;  // of each token of the slice: its block's first unit, its place in the block
};

class Attending {
 public:
  Attending(const LatentAttention& attention, const Attended& call, Scratch& scratch) : attention_(attention), call_(call), scratch_(scratch) {}

  // The entry that a token has in the cache.
  void remember(std::size_t token) const {
    const std::size_t latent = attention_.latent, position = position_of(token);
    const float* from = call_.kv + token * attention_.entry();
    float* to = call_.cache + (token / call_.tokens * call_.context + position) * attention_.entry();
    normed(from, attention_.norm, latent, attention_.epsilon, to);
    rotate(from + latent, position, 1.0f, to + latent);
  }

  void slice(std::size_t first, std::size_t count, const Parallel& parallel) {
    cut(first, count);
    const std::size_t groups = (count + kTogether - 1) / kTogether;
    const auto by_head = [&](const auto& work) {
      parallel(attention_.heads * groups, [&](std::size_t one) {
        const std::size_t begin = one % groups * kTogether;
        work(one / groups, first, begin, std::min(begin + kTogether, count));
      });
    };
    scratch_.queries.resize(count * attention_.heads * attention_.entry());
    by_head([&](auto... where) { ask(where...); });
    parallel(scratch_.units.size(), [&](std::size_t unit) { read(first, unit); });
    by_head([&](auto... where) { finish(where...); });
  }

 private:
  [[nodiscard]] std::size_t position_of(std::size_t token) const { return static_cast<std::size_t>(call_.start[token / call_.tokens]) + token % call_.tokens; }

  void rotate(const float* from, std::size_t position, float scale, float* to) const {
    const std::size_t pairs = attention_.rope / 2;
    const float *cos = attention_.cos + position * pairs, *sin = attention_.sin + position * pairs;
    for (std::size_t pair = 0; pair < pairs; ++pair) {
      const float even = from[2 * pair] * scale, odd = from[2 * pair + 1] * scale;
      to[2 * pair] = even * cos[pair] - odd * sin[pair];
      to[2 * pair + 1] = even * sin[pair] + odd * cos[pair];
    }
  }

  // The slice's tokens in blocks of one row each, and those in units. What a token's numbers come from depends on its row alone.
  void cut(std::size_t first, std::size_t count) {
    scratch_.blocks.clear();
    scratch_.units.clear();
    scratch_.places.resize(count);
    const std::size_t together = std::max<std::size_t>(1, kBlock / attention_.heads);
    for (std::size_t token = first; token < first + count;) {
      const std::size_t at = token % call_.tokens, tokens = std::min({together - at % together, call_.tokens - at, first + count - token});
      const std::size_t positions = position_of(token) + tokens;
      const std::size_t runs = call_.tokens > together ? 1 : std::clamp<std::size_t>(positions / kLeastRun, 1, kRuns);
      for (std::size_t place = 0; place < tokens; ++place) scratch_.places[token - first + place] = {scratch_.units.size(), place};
      for (std::size_t run = 0; run < runs; ++run) scratch_.units.push_back({scratch_.blocks.size(), positions * run / runs, positions * (run + 1) / runs});
      scratch_.blocks.push_back({token / call_.tokens, token, tokens, positions, runs});
      token += tokens;
    }
    scratch_.parts.resize(std::max(scratch_.parts.size(), scratch_.units.size()));
  }

  // Queries of one head in the latent space, and their rotated parts behind them.
  void ask(std::size_t head, std::size_t first, std::size_t begin, std::size_t end) {
    static thread_local Line scaled;
    const std::size_t nope = attention_.nope, wide = filled(nope, 2), entry = attention_.entry(), stride = attention_.heads * entry;
    scaled.resize((end - begin) * wide);
    float* const queries = scratch_.queries.data() + begin * stride + head * entry;
    for (std::size_t token = begin; token < end; ++token) {
      const float* from = call_.q + ((first + token) * attention_.heads + head) * attention_.query();
      float* to = scaled.data() + (token - begin) * wide;
      to[wide - 1] = 0.0f;
      for (std::size_t at = 0; at < nope; ++at) to[at] = from[at] * attention_.scale;
      rotate(from + nope, position_of(first + token), attention_.scale, queries + (token - begin) * stride + attention_.latent);
    }
    by_matrix(attention_.k_up, head, scaled.data(), end - begin, queries, stride, attention_.latent);
  }

  // What the rows of a unit's block read of its positions: softmaxes of scores, not yet divided by their sums.
  void read(std::size_t first, std::size_t index) {
    static thread_local Line scores, panel, factors;
    const Unit& unit = scratch_.units[index];
    const Block& block = scratch_.blocks[unit.block];
    const std::size_t rows = block.tokens * attention_.heads, entry = attention_.entry(), latent = attention_.latent;
    const float* const queries = scratch_.queries.data() + (block.first - first) * attention_.heads * entry;
    Part& part = scratch_.parts[index];
    part.most.assign(rows, -std::numeric_limits<float>::infinity());
    part.sums.assign(rows, 0.0f);
    part.mixed.assign(rows * latent, 0.0f);
    scores.resize(rows * kChunk);
    panel.resize(rows * kLanes);
    factors.resize(rows);
    const Kind& kind = kind_for(rows, kLanes);
    for (std::size_t begin = unit.begin; begin < unit.end; begin += kChunk) {
      const std::size_t count = std::min(kChunk, unit.end - begin);
      const float* const entries = call_.cache + (block.row * call_.context + begin) * entry;
      kind.dots({queries, entry, rows, entries, entry, count, entry, scores.data(), kChunk});
      for (std::size_t row = 0; row < rows; ++row) {
        const std::size_t sees = position_of(block.first + row / attention_.heads) + 1;
        factors[row] = soften_row(scores.data() + row * kChunk, sees > begin ? std::min(sees - begin, count) : 0, count, part.most[row], part.sums[row]);
      }
      for (std::size_t at = 0; at < latent; at += kLanes) {
        const auto* from = reinterpret_cast<const std::uint8_t*>(entries + at);
        kind.float32({from, scores.data(), kChunk, rows, count, panel.data(), kLanes, entry});
        for (std::size_t row = 0; row < rows; ++row) blend(part.mixed.data() + row * latent + at, factors[row], panel.data() + row * kLanes, kLanes);
      }
    }
  }

  // Scores become weights; zero for those of `count` that are not seen. Returns what earlier weights are to be multiplied by.
  static float soften_row(float* scores, std::size_t seen, std::size_t count, float& most, float& sum) {
    if (seen == 0) {
      std::fill_n(scores, count, 0.0f);
      return 1.0f;
    }
    const float before = most;
    most = std::max(before, largest(scores, seen));
    const float factor = before == most ? 1.0f : exponential_of(before - most);
    sum = sum * factor + soften(scores, seen, most);
    if (const std::size_t done = filled(seen, kLanes); done < count) std::fill_n(scores + done, count - done, 0.0f);
    return factor;
  }

  // The units of some tokens together, and a head's values of that.
  void finish(std::size_t head, std::size_t first, std::size_t begin, std::size_t end) {
    static thread_local Line mixed;
    const std::size_t latent = attention_.latent, value = attention_.value, stride = attention_.heads * value;
    mixed.resize((end - begin) * latent);
    for (std::size_t token = begin; token < end; ++token) join(scratch_.places[token], head, mixed.data() + (token - begin) * latent);
    by_matrix(attention_.v_up, head, mixed.data(), end - begin, call_.y + (first + begin) * stride + head * value, stride, value);
  }

  void join(std::pair<std::size_t, std::size_t> place, std::size_t head, float* mixed) const {
    const std::size_t latent = attention_.latent, row = place.second * attention_.heads + head;
    const Part* const parts = scratch_.parts.data() + place.first;
    const std::size_t runs = scratch_.blocks[scratch_.units[place.first].block].runs;
    float most = parts[0].most[row], sum = 0;
    for (std::size_t run = 1; run < runs; ++run) most = std::max(most, parts[run].most[row]);
    std::fill_n(mixed, latent, 0.0f);
    for (std::size_t run = 0; run < runs; ++run) sum += parts[run].sums[row] * exponential_of(parts[run].most[row] - most);
    for (std::size_t run = 0; run < runs; ++run) add(mixed, parts[run].mixed.data() + row * latent, exponential_of(parts[run].most[row] - most) / sum, latent);
  }

  // y[row] = x[row] · a head's matrix. x: (rows, inputs filled up to an even number); y: (rows, outputs), `stride` floats from row to row.
  static void by_matrix(const Packed& matrix, std::size_t head, const float* x, std::size_t rows, float* y, std::size_t stride, std::size_t outputs) {
    static thread_local Line part;
    const Packed own = matrix.behind(head * matrix.bytes(), 0);
    const std::size_t wide = filled(matrix.inputs, 2);
    const Kind& kind = kind_for(rows, kLanes);
    part.resize(rows * kLanes);
    for (std::size_t panel = 0; panel < own.panels(); ++panel) {
      kind.floats(own.bits)({own.panel(panel), x, wide, rows, wide, part.data(), kLanes});
      const std::size_t count = std::min(kLanes, outputs - panel * kLanes);
      for (std::size_t row = 0; row < rows; ++row) std::memcpy(y + row * stride + panel * kLanes, part.data() + row * kLanes, count * sizeof(float));
    }
  }

  const LatentAttention& attention_;
  const Attended& call_;
  Scratch& scratch_;
};

}  // namespace

void attend(const LatentAttention& attention, const Attended& call, const Parallel& parallel) {
  static thread_local Scratch kept;
  Attending attending(attention, call, kept);  // what other threads see is this thread's
  const std::size_t tokens = call.batch * call.tokens, slice = std::max<std::size_t>(1, kSlice / attention.heads);
  each_row(tokens, parallel, [&](std::size_t token) { attending.remember(token); });
  for (std::size_t first = 0; first < tokens; first += slice) attending.slice(first, std::min(slice, tokens - first), parallel);
}

}  // namespace moetrt::ops
