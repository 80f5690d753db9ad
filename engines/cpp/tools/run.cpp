// moetrt-run: go on from text or token ids with engines that `moetrt build` wrote, without Python.
#include <charconv>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "moetrt/chain.hpp"
#include "moetrt/error.hpp"
#include "moetrt/tokenizer.hpp"

namespace {

constexpr const char* kUsage =
    "Usage: moetrt-run ENGINES (--prompt TEXT | --token-ids IDS) [OPTIONS]\n\n"
    "  Generate tokens with ENGINES, all ranks in this process.\n\n"
    "Options:\n"
    "  --prompt TEXT        Text to go on from, by the engines' own tokenizer.json.\n"
    "  --token-ids IDS      Token ids to go on from, such as 5,9,2.\n"
    "  --max-tokens TOKENS  New tokens at most.  [default: 64]\n"
    "  --temperature T      0 takes the likeliest token; above, tokens are drawn.  [default: 0]\n"
    "  --top-p P            Draw from the likeliest tokens that reach this probability together.  [default: 1]\n"
    "  --seed NUMBER        Makes drawing repeatable; other tokens than Python draws.\n"
    "  --ignore-eos         Go on after the end-of-sequence token.\n"
    "  --stream             Print text as it comes.\n"
    "  --threads THREADS    Threads in all; ranks share them.  [default: the cores]\n"
    "  --plugins FILE       Library of kernels that ENGINES were built with.  [default: the one beside them]\n"
    "  --onnxruntime FILE   ONNX Runtime's shared library.  [default: libonnxruntime.so.1]\n"
    "  --oniguruma FILE     Oniguruma's shared library, which reading text needs.  [default: libonig.so.5]\n"
    "  --logits FILE        Write the prompt's logits, float32 (tokens, vocab), and generate nothing.\n"
    "  --json               Print one JSON document.\n"
    "  --help               Show this message.\n";

using moetrt::UsageError;

struct Request {
  std::string engines, onnxruntime, oniguruma, plugins, logits;
  std::optional<std::string> prompt;
  std::vector<std::int64_t> token_ids;
  moetrt::Generation generation;
  int threads = 0;
  bool json = false, stream = false, help = false;
};

template <typename Number>
Number number(const std::string& option, const std::string& text) {
  Number value{};
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failed != std::errc{} || end != text.data() + text.size()) throw UsageError(option + " is '" + text + "'; a number is expected.");
  return value;
}

template <typename Number>
Number positive(const std::string& option, const std::string& text) {
  const auto value = number<Number>(option, text);
  if (value < 1) throw UsageError(option + " is " + text + "; it must be 1 or more.");
  return value;
}

std::vector<std::int64_t> ids(const std::string& text) {
  std::vector<std::int64_t> found;
  std::stringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) found.push_back(number<std::int64_t>("--token-ids", part));
  return found;
}

Request parse(const std::vector<std::string>& words) {
  Request made;
  const std::map<std::string, std::function<void(const std::string&)>> options{
      {"--prompt", [&](const std::string& text) { made.prompt = text; }},
      {"--token-ids", [&](const std::string& text) { made.token_ids = ids(text); }},
      {"--max-tokens", [&](const std::string& text) { made.generation.max_tokens = positive<std::int64_t>("--max-tokens", text); }},
      {"--temperature", [&](const std::string& text) { made.generation.sampling.temperature = number<double>("--temperature", text); }},
      {"--top-p", [&](const std::string& text) { made.generation.sampling.top_p = number<double>("--top-p", text); }},
      {"--seed", [&](const std::string& text) { made.generation.sampling.seed = number<std::uint64_t>("--seed", text); }},
      {"--threads", [&](const std::string& text) { made.threads = positive<int>("--threads", text); }},
      {"--onnxruntime", [&](const std::string& text) { made.onnxruntime = text; }},
      {"--oniguruma", [&](const std::string& text) { made.oniguruma = text; }},
      {"--plugins", [&](const std::string& text) { made.plugins = text; }},
      {"--logits", [&](const std::string& text) { made.logits = text; }},
  };
  const std::map<std::string, bool*> flags{{"--ignore-eos", &made.generation.ignore_eos}, {"--json", &made.json}, {"--stream", &made.stream}, {"--help", &made.help}};
  for (std::size_t place = 0; place < words.size(); ++place) {
    const std::string& word = words[place];
    if (const auto flag = flags.find(word); flag != flags.end()) {
      *flag->second = true;
    } else if (const auto option = options.find(word); option != options.end()) {
      if (place + 1 == words.size()) throw UsageError(word + " needs a value.");
      option->second(words[++place]);
    } else if (word.rfind("--", 0) == 0 || !made.engines.empty()) {
      throw UsageError("there is no option '" + word + "'.");
    } else {
      made.engines = word;
    }
  }
  if (!made.help && (made.engines.empty() || made.prompt.has_value() != made.token_ids.empty())) throw UsageError("ENGINES and either --prompt or --token-ids are needed.");
  return made;
}

std::string listed(const std::vector<std::int64_t>& tokens, const char* between) {
  std::ostringstream text;
  for (std::size_t place = 0; place < tokens.size(); ++place) text << (place ? between : "") << tokens[place];
  return text.str();
}

// The tokenizer of the engines; none where nobody asked for text and there is none that can be read.
std::optional<moetrt::Tokenizer> tokenizer(const Request& request, const moetrt::Chain& chain) {
  if (request.prompt) moetrt::Tokenizer::open_patterns(request.oniguruma);
  try {
    return moetrt::Tokenizer::load(request.engines, chain.manifest().bos);
  } catch (const moetrt::Error& error) {
    if (request.prompt) throw;
    if (std::filesystem::exists(std::filesystem::path(request.engines) / "tokenizer.json")) std::cerr << "note: no text: " << error.what() << "\n";
    return std::nullopt;
  }
}

void write_logits(const Request& request, const std::vector<std::int64_t>& prompt, moetrt::Chain& chain) {
  const std::vector<float> found = chain.logits(prompt);
  std::ofstream file(request.logits, std::ios::binary);
  file.write(reinterpret_cast<const char*>(found.data()), static_cast<std::streamsize>(found.size() * sizeof(float)));
  if (!file.flush()) throw moetrt::Error("cannot write " + request.logits + ".");
}

std::string rate(double count, std::optional<double> seconds) {
  if (!seconds || *seconds <= 0) return "null";
  std::ostringstream text;
  text.precision(6);
  text << count / *seconds;
  return text.str();
}

void generate(const Request& request, const std::vector<std::int64_t>& prompt, const std::optional<moetrt::Tokenizer>& tokenizer, moetrt::Chain& chain) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  std::optional<Clock::time_point> first, last;
  std::optional<moetrt::Streamer> streamer;
  const bool shown = request.stream && !request.json;  // as text; as ids where there is no tokenizer
  if (tokenizer && shown) streamer.emplace(*tokenizer);
  const char* between = "";
  const auto tokens = chain.generate(prompt, request.generation, [&](std::int64_t token) {
    last = Clock::now();
    first = first ? first : last;
    if (streamer)
      std::cout << streamer->add(token) << std::flush;
    else if (shown)
      std::cout << between << token << std::flush;
    between = ",";
  });
  if (shown) {
    std::cout << (streamer ? streamer->end() : "") << "\n";
    return;
  }
  const std::string text = tokenizer ? tokenizer->decode(tokens) : "";
  const auto seconds = [](Clock::time_point from, Clock::time_point to) { return std::chrono::duration<double>(to - from).count(); };
  if (!request.json) {
    std::cout << (text.empty() ? listed(tokens, ",") : text) << "\n";
    return;
  }
  std::cout << "{\"prompt_tokens\": [" << listed(prompt, ", ") << "], \"tokens\": [" << listed(tokens, ", ") << "], \"text\": " << nlohmann::json(text).dump(-1, ' ', true)
            << ", \"prefill_tokens_per_second\": " << rate(static_cast<double>(prompt.size()), seconds(begin, first.value_or(Clock::now()))) << ", \"decode_tokens_per_second\": "
            << (tokens.size() > 1 ? rate(static_cast<double>(tokens.size() - 1), seconds(first.value_or(begin), last.value_or(begin))) : "null") << "}\n";
}

int refuse(const std::string& message, const std::string& hint, int code) {
  std::cerr << "Error: " << message << "\n";
  if (!hint.empty()) std::cerr << "Hint: " << hint << "\n";
  return code;
}

}  // namespace

int main(int count, char** words) {
  try {
    const Request request = parse({words + 1, words + count});
    if (request.help) {
      std::cout << kUsage;
      return 0;
    }
    if (!request.onnxruntime.empty()) moetrt::Runtime::open(request.onnxruntime);  // else when the engines turn out to need it
    moetrt::Chain chain = moetrt::Chain::load(request.engines, {request.threads, request.plugins});
    const auto text = request.prompt || request.logits.empty() ? tokenizer(request, chain) : std::nullopt;
    const std::vector<std::int64_t> prompt = request.prompt && text ? text->encode(*request.prompt) : request.token_ids;
    request.logits.empty() ? generate(request, prompt, text, chain) : write_logits(request, prompt, chain);
    return 0;
  } catch (const UsageError& error) {
    return refuse(error.what(), error.hint().empty() ? "moetrt-run --help" : error.hint(), 2);
  } catch (const moetrt::Error& error) {
    return refuse(error.what(), error.hint(), 1);
  } catch (const std::exception& error) {
    return refuse(error.what(), "", 1);
  }
}
