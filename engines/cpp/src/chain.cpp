#include "moetrt/chain.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <optional>
#include <set>

#include "backends.hpp"
#include "crew.hpp"
#include "moetrt/error.hpp"

namespace moetrt {
namespace {

constexpr std::int64_t kPrefill = 256;     // prompt tokens that go through the model at once, all rows'
constexpr std::int64_t kCacheStep = 64;    // cache lengths are multiples of this
constexpr std::chrono::seconds kGrace{1};  // for ranks to end or to come to where they wait, after another has failed

Array numbers(std::vector<std::int64_t> shape, const std::vector<std::int64_t>& values) {
  Array array("int64", std::move(shape));
  std::memcpy(array.data(), values.data(), array.bytes());
  return array;
}

Array range(std::int64_t count) {
  Array array("int64", {1, count});
  for (std::int64_t place = 0; place < count; ++place) array.as<std::int64_t>()[place] = place;
  return array;
}

// Results that the host reads: logits, and what other ranks get.
std::set<std::string> hosted(const Assembly& assembly) {
  const std::vector<std::string> sent = assembly.sent();
  std::set<std::string> names(sent.begin(), sent.end());
  names.insert("logits");
  for (const Step& step : assembly.steps) {
    if (const auto* reduce = std::get_if<AllReduce>(&step)) names.insert(reduce->value);
    if (const auto* gather = std::get_if<AllGather>(&step)) names.insert(gather->value);
  }
  return names;
}

// Whether the caches' length is that of the requests; else it is built in.
bool stretches(const Assembly& assembly) {
  for (const auto& [launch, signature] : assembly.signatures)
    for (const Tensor& input : signature.inputs)
      if (std::find(input.shape.begin(), input.shape.end(), Dim("context")) != input.shape.end()) return true;
  return false;
}

void require_one_schedule(const std::vector<Manifest>& ranks) {
  const int tensor = ranks.front().tensor;
  for (const Manifest& rank : ranks) {
    const auto& steps = rank.assembly.steps;
    const auto& mate = ranks[static_cast<std::size_t>(rank.rank - rank.rank % tensor)].assembly.steps;
    if (steps.size() != mate.size() || !std::equal(steps.begin(), steps.end(), mate.begin(), [](const Step& one, const Step& other) { return one.index() == other.index(); }))
      throw Error(rank.folder.string() + " has another schedule than the ranks of its stage.", "Build the ranks of one set from one set of graphs.");
    if (rank.rank + tensor >= static_cast<int>(ranks.size()) && !rank.assembly.sent().empty())
      throw Error(rank.folder.string() + " sends from the last stage, which none follows.", "Its manifest is damaged; build it again.");
  }
}

}  // namespace

struct Chain::Parts {
  std::vector<Manifest> ranks;
  std::unique_ptr<Opener> opener;
  std::vector<std::map<std::string, std::unique_ptr<Session>>> sessions;  // rank → launch → session; none where the ranks are joined
  std::unique_ptr<Session> joined;
  std::string joined_logits;  // what the joined graph calls them
  std::optional<Cache> kept;
  std::unique_ptr<Crew> crew;  // threads of the ranks, where these meet inside their graphs; they end before what they use

  [[nodiscard]] const Manifest& first() const { return ranks.front(); }

  void check(std::span<const std::int64_t> row, std::int64_t more) const {
    if (row.empty()) throw Error("the prompt has no tokens.", "Give at least one token id.");
    for (std::size_t position = 0; position < row.size(); ++position)
      if (row[position] < 0 || row[position] >= first().vocab)
        throw Error(
            "token id " + std::to_string(row[position]) + " at position " + std::to_string(position) + " is not in the vocabulary of " + std::to_string(first().vocab) + ".",
            "Ids are 0 to " + std::to_string(first().vocab - 1) + ".");
    if (more < 0) throw Error("max_tokens is " + std::to_string(more) + "; it must be 0 or more.");
    if (static_cast<std::int64_t>(row.size()) + more > first().max_context)
      throw Error(
          std::to_string(row.size()) + " prompt tokens and " + std::to_string(more) + " new ones are beyond the engines' context of " + std::to_string(first().max_context) + ".",
          "Ask for fewer, or build with a larger --max-context.");
  }

  // The ranks of one stage, all of them up to each collective in turn; what they send is among the values of the next.
  void walk_stage(int stage, std::vector<Values>& values, Cache& cache) {
    const int tensor = first().tensor, begin = stage * tensor;
    const auto& steps = ranks[begin].assembly.steps;
    for (std::size_t place = 0; place < steps.size(); ++place) {
      if (std::holds_alternative<Launch>(steps[place]))
        each(begin, begin + tensor, [&](int rank) { sessions[rank].at(std::get<Launch>(ranks[rank].assembly.steps[place]).graph)->run(values[rank], cache.ranks.at(rank)); });
      else
        join(place, begin, values);
    }
    for (int rank = begin; rank < begin + tensor; ++rank)
      for (const std::string& name : ranks[rank].assembly.sent()) values[rank + tensor][name] = found(values[rank], name);
  }

  // Ranks at once, or in turn.
  void each(int begin, int end, const std::function<void(int)>& work) {
    if (crew) {
      opener->prepare();
      return crew->call(begin, end, work);
    }
    for (int rank = begin; rank < end; ++rank) work(rank);
  }

  static std::unique_ptr<Parts> open(const std::filesystem::path& folder, std::vector<Manifest> ranks, std::unique_ptr<Opener> opener, bool joined) {
    require_one_schedule(ranks);
    auto made = std::make_unique<Parts>();
    made->ranks = std::move(ranks);
    made->opener = std::move(opener);
    const std::optional<Joined> whole = joined && made->ranks.size() > 1 ? Joined::find(folder, made->ranks) : std::nullopt;
    whole ? made->open_joined(*whole) : made->open_ranks();
    return made;
  }

  void open_joined(const Joined& whole) {
    for (const Tensor& output : whole.signature.outputs)
      if (std::none_of(whole.signature.states.begin(), whole.signature.states.end(), [&](const State& state) { return state.output == output.name; })) joined_logits = output.name;
    joined = opener->open({whole.graph, whole.signature, {joined_logits}, true}, first());
  }

  void open_ranks() {
    sessions.resize(ranks.size());
    if (opener->together()) crew = std::make_unique<Crew>(static_cast<int>(ranks.size()), kGrace, [this] { opener->release(); });
    each(0, static_cast<int>(ranks.size()), [this](int rank) {
      const Manifest& record = ranks[static_cast<std::size_t>(rank)];
      const Assembly& assembly = record.assembly;
      for (const auto& [launch, file] : assembly.graphs)
        sessions[static_cast<std::size_t>(rank)].emplace(
            launch, opener->open({record.folder / file, assembly.signatures.at(launch), hosted(assembly), assembly.graphs.size() == 1}, record));
    });
  }

  static const Array& found(const Values& values, const std::string& name) {
    const auto there = values.find(name);
    if (there == values.end()) throw Error("the schedule joins or sends " + name + ", which nothing before it makes.", "It is damaged; build it again.");
    return there->second;
  }

  // Logits of so many tokens; what a signature calls so may be of any size.
  [[nodiscard]] Array logits(const Values& values, const std::string& name, std::size_t tokens) const {
    Array made = found(values, name).host();
    if (made.dtype() != "float32" || made.size() != tokens * static_cast<std::size_t>(first().vocab))
      throw Error("the engines gave logits of another size than their vocabulary's.", "Build them again.");
    return made;
  }

  void join(std::size_t place, int begin, std::vector<Values>& values) {
    const Step& step = ranks[begin].assembly.steps[place];
    if (const auto* reduce = std::get_if<AllReduce>(&step))
      spread(all_reduce(gathered(reduce->value, begin, values)), reduce->result, begin, values);
    else if (const auto* gather = std::get_if<AllGather>(&step))
      spread(all_gather(gathered(gather->value, begin, values)), gather->result, begin, values);
  }

  [[nodiscard]] std::vector<Array> gathered(const std::string& name, int begin, const std::vector<Values>& values) const {
    std::vector<Array> parts;
    for (int rank = begin; rank < begin + first().tensor; ++rank) parts.push_back(found(values[rank], name).host());
    return parts;
  }

  void spread(const Array& whole, const std::string& name, int begin, std::vector<Values>& values) const {
    for (int rank = begin; rank < begin + first().tensor; ++rank) values[rank][name] = whole;
  }
};

Chain::Chain(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Chain::Chain(Chain&&) noexcept = default;
Chain::~Chain() = default;

Chain Chain::load(const std::filesystem::path& folder, int threads) { return load(folder, LoadOptions{threads, {}}); }

Chain Chain::load(const std::filesystem::path& folder, const LoadOptions& options) {
  std::vector<Manifest> ranks = Manifest::read_set(folder);
  std::unique_ptr<Opener> opener = find_opener(ranks, options);
  const bool joined = ranks.front().backend == "ort";
  return Chain(Parts::open(folder, std::move(ranks), std::move(opener), joined));
}

Chain Chain::load(const std::filesystem::path& folder, std::unique_ptr<Opener> opener, bool joined) {
  return Chain(Parts::open(folder, Manifest::read_set(folder), std::move(opener), joined));
}

const Manifest& Chain::manifest() const { return parts_->first(); }

Cache& Chain::cache(std::int64_t batch, std::int64_t tokens) {
  static std::atomic<std::uint64_t> ids{0};
  const std::int64_t most = manifest().max_context, wanted = std::min((tokens + kCacheStep - 1) / kCacheStep * kCacheStep, most);
  const std::int64_t context = stretches(manifest().assembly) ? wanted : most;
  std::optional<Cache>& kept = parts_->kept;
  if (kept && kept->batch == batch && kept->context == context) return *kept;
  kept.reset();  // before there is another: both might be too much
  Cache made{batch, context, {}, {++ids, {}}};
  for (const Manifest& rank : parts_->ranks) {
    States& states = made.ranks[rank.rank];
    states.id = ++ids;
    for (const auto& [launch, signature] : rank.assembly.signatures)
      for (const State& state : signature.states) {
        const auto tensor = std::find_if(signature.inputs.begin(), signature.inputs.end(), [&](const Tensor& one) { return one.name == state.input; });
        std::vector<std::int64_t> shape;
        for (const Dim& dim : tensor->shape) {
          const auto* name = std::get_if<std::string>(&dim);
          shape.push_back(!name ? std::get<std::int64_t>(dim) : *name == "batch" ? batch : context);
        }
        const Array buffer(tensor->dtype, shape, parts_->joined ? parts_->joined->memory() : parts_->sessions[static_cast<std::size_t>(rank.rank)].at(launch)->memory());
        states.buffers.emplace(state.input, buffer);
        made.joined.buffers.emplace("rank." + std::to_string(rank.rank) + "/" + state.input, buffer);
      }
  }
  return kept.emplace(std::move(made));
}

Array Chain::step(const Array& token_ids, const Array& start, const Array& select, Cache& cache) {
  Values given{{"token_ids", token_ids}, {"start", start}, {"select", select}};
  if (parts_->joined) {
    parts_->joined->run(given, cache.joined);
    return parts_->logits(given, parts_->joined_logits, select.size());
  }
  std::vector<Values> values(parts_->ranks.size(), given);
  for (int stage = 0; stage < manifest().pipeline; ++stage) parts_->walk_stage(stage, values, cache);
  return parts_->logits(values.back(), "logits", select.size());
}

std::vector<float> Chain::logits(std::span<const std::int64_t> token_ids) {
  parts_->check(token_ids, 0);
  const auto tokens = static_cast<std::int64_t>(token_ids.size());
  Cache& latents = cache(1, tokens);
  std::vector<float> found;
  for (std::int64_t begin = 0; begin < tokens; begin += kPrefill) {
    const std::int64_t count = std::min(kPrefill, tokens - begin);
    const Array ids = numbers({1, count}, {token_ids.begin() + begin, token_ids.begin() + begin + count});
    const Array made = step(ids, numbers({1}, {begin}), range(count), latents);
    if (found.empty()) found.reserve(token_ids.size() * static_cast<std::size_t>(manifest().vocab));
    found.insert(found.end(), made.as<float>(), made.as<float>() + made.size());
  }
  return found;
}

std::vector<std::int64_t> Chain::generate(std::span<const std::int64_t> token_ids, const Generation& options, const std::function<void(std::int64_t)>& each) {
  const std::vector<std::vector<std::int64_t>> prompts{{token_ids.begin(), token_ids.end()}};
  return generate_batch(prompts, options,
                        [&](std::size_t, std::int64_t token) {
                          if (each) each(token);
                        })
      .front();
}

std::vector<std::vector<std::int64_t>> Chain::generate_batch(std::span<const std::vector<std::int64_t>> prompts, const Generation& options,
                                                             const std::function<void(std::size_t, std::int64_t)>& each) {
  const std::size_t rows = prompts.size();
  std::vector<std::vector<std::int64_t>> made(rows);
  std::vector<Sampler> samplers;
  std::vector<std::int64_t> lengths, tokens(rows);
  for (const auto& prompt : prompts) {
    parts_->check(prompt, options.max_tokens);
    lengths.push_back(static_cast<std::int64_t>(prompt.size()));
    samplers.emplace_back(options.sampling, samplers.size());
  }
  if (options.max_tokens == 0 || prompts.empty()) return made;
  const auto count = static_cast<std::int64_t>(rows);
  const auto& stops = manifest().eos;
  Cache& latents = cache(count, *std::max_element(lengths.begin(), lengths.end()) + options.max_tokens);
  Array logits = prefill(prompts, latents);
  std::vector<char> alive(rows, 1);
  for (std::int64_t number = 0;; ++number) {
    for (std::size_t row = 0; row < rows; ++row) {
      const std::size_t vocab = logits.size() / rows;
      tokens[row] = samplers[row].next({logits.as<float>() + row * vocab, vocab});
      if (!options.ignore_eos && std::find(stops.begin(), stops.end(), tokens[row]) != stops.end()) alive[row] = 0;
      if (!alive[row]) continue;
      made[row].push_back(tokens[row]);
      if (each) each(row, tokens[row]);
    }
    if (number + 1 == options.max_tokens || std::find(alive.begin(), alive.end(), 1) == alive.end()) return made;
    logits = step(numbers({count, 1}, tokens), numbers({count}, lengths), Array("int64", {count, 1}), latents);
    for (std::int64_t& length : lengths) ++length;
  }
}

Array Chain::prefill(std::span<const std::vector<std::int64_t>> prompts, Cache& cache) {
  const auto rows = static_cast<std::int64_t>(prompts.size());
  std::int64_t longest = 0;
  for (const auto& prompt : prompts) longest = std::max(longest, static_cast<std::int64_t>(prompt.size()));
  Array result("float32", {rows, manifest().vocab});
  const std::size_t width = static_cast<std::size_t>(manifest().vocab);
  const std::int64_t each = std::max<std::int64_t>(kPrefill / std::max<std::int64_t>(rows, 1), 1);
  for (std::int64_t begin = 0; begin < longest; begin += each) {
    const std::int64_t count = std::min(each, longest - begin);
    Array ids("int64", {rows, count}), select("int64", {rows, 1});  // padded on the right with zeros
    std::vector<std::size_t> ending;
    for (std::size_t row = 0; row < prompts.size(); ++row) {
      const auto length = static_cast<std::int64_t>(prompts[row].size()), here = std::clamp<std::int64_t>(length - begin, 0, count);
      std::copy_n(prompts[row].begin() + std::min(begin, length), here, ids.as<std::int64_t>() + static_cast<std::int64_t>(row) * count);
      if (length <= begin || length > begin + count) continue;
      select.as<std::int64_t>()[row] = here - 1;
      ending.push_back(row);
    }
    const Array logits = step(ids, numbers({rows}, std::vector<std::int64_t>(prompts.size(), begin)), select, cache);
    for (const std::size_t row : ending) std::copy_n(logits.as<float>() + row * width, width, result.as<float>() + row * width);
  }
  return result;
}

}  // namespace moetrt
