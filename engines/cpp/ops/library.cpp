// The library that ONNX Runtime loads: each op with its inputs read and checked, and handed to what computes it.
#define ORT_API_MANUAL_INIT
#include <onnxruntime/onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "attention.hpp"
#include "experts.hpp"
#include "linear.hpp"
#include "moetrt/error.hpp"
#include "products.hpp"
#include "route.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#define MOETRT_SEEN __attribute__((visibility("default")))

namespace moetrt::ops {
namespace {

constexpr const char* kDomain = "moetrt";
constexpr const char* kVersion = "2";  // of the ops and of how they read matrices: OPS_VERSION in exporter/lowering/panels.py

constexpr std::int64_t kMost = 1 << 20;  // of outputs, experts and other counts: no product of three of them overflows

using Type = ONNXTensorElementDataType;
constexpr Type kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, kBytes = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, kIds = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr Type kScale = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;  // float32 or bfloat16

void require(bool right, const std::string& problem, const char* hint = "Build the engines again.") {
  if (!right) throw Error(problem, hint);
}

std::size_t size(std::int64_t number) { return static_cast<std::size_t>(number); }

// Runs work on the threads of ONNX Runtime's operator.
Parallel parallel_in(OrtKernelContext* context) {
  return [context](std::size_t count, const std::function<void(std::size_t)>& work) {
    if (count == 1) return work(0);
    const auto call = [](void* data, std::size_t one) { (*static_cast<const std::function<void(std::size_t)>*>(data))(one); };
    Ort::ThrowOnError(Ort::GetApi().KernelContext_ParallelFor(context, call, count, 0, const_cast<std::function<void(std::size_t)>*>(&work)));
  };
}

// Asks Linux to read what lies here, of a file that is mapped, in large pages: in small ones, and in the order in which experts are chosen, it
// would be read at two thirds of the speed ever after. No more than advice: where it is not taken, nothing changes.
void in_large_pages([[maybe_unused]] const void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__)
  const std::size_t before = reinterpret_cast<std::uintptr_t>(memory) % static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  madvise(const_cast<char*>(static_cast<const char*>(memory) - before), bytes + before, MADV_HUGEPAGE);
#endif
}

class Attributes {
 public:
  explicit Attributes(const OrtKernelInfo* info) : info_(info) {
    for (std::size_t place = 0; place < info_.GetInputCount(); ++place) {
      int constant = 0;
      const Ort::ConstValue value = info_.GetTensorConstantInput(place, &constant);
      if (!constant) continue;
      const auto described = value.GetTensorTypeAndShapeInfo();
      if (described.GetElementType() == kBytes) in_large_pages(value.GetTensorRawData(), described.GetElementCount());
    }
  }
  [[nodiscard]] std::int64_t number(const char* name) const { return info_.GetAttribute<std::int64_t>(name); }
  [[nodiscard]] float real(const char* name) const { return info_.GetAttribute<float>(name); }
  [[nodiscard]] std::string text(const char* name) const { return info_.GetAttribute<std::string>(name); }
  [[nodiscard]] std::size_t count(const char* name, std::int64_t least = 1) const {
    const std::int64_t value = number(name);
    require(value >= least && value <= kMost, std::string(name) + " is " + std::to_string(value) + ".");
    return size(value);
  }

 private:
  Ort::ConstKernelInfo info_;
};

// An op's inputs, by their places; shapes are checked, since memory is read by them.
class Inputs {
 public:
  explicit Inputs(OrtKernelContext* context) : context_(context) {}
  [[nodiscard]] bool has(std::size_t place) const { return place < context_.GetInputCount() && context_.GetInput(place); }
  [[nodiscard]] std::vector<std::int64_t> shape(std::size_t place) const { return context_.GetInput(place).GetTensorTypeAndShapeInfo().GetShape(); }
  [[nodiscard]] std::size_t elements(std::size_t place) const { return context_.GetInput(place).GetTensorTypeAndShapeInfo().GetElementCount(); }
  [[nodiscard]] Type type(std::size_t place) const { return context_.GetInput(place).GetTensorTypeAndShapeInfo().GetElementType(); }
  // Throws Error: the input is not there, or has another size. Its type is what the op declares; of those that take any, it is looked at first.
  template <typename T>
  [[nodiscard]] const T* data(std::size_t place, std::size_t elements_wanted, const char* what) const {
    require(has(place), std::string(what) + " is not given.");
    require(elements(place) == elements_wanted, std::string(what) + " has " + std::to_string(elements(place)) + " elements; " + std::to_string(elements_wanted) + " are expected.");
    return context_.GetInput(place).GetTensorData<T>();
  }
  template <typename T>
  [[nodiscard]] T* output(std::size_t place, const std::vector<std::int64_t>& shape) {
    return context_.GetOutput(place, shape).GetTensorMutableData<T>();
  }

 private:
  Ort::KernelContext context_;
};

// A matrix's sizes, whose memory is not known yet.
Packed described(std::size_t inputs, std::size_t outputs, std::size_t block, int bits) {
  Packed made{nullptr, nullptr, inputs, filled(outputs, kLanes), block ? block : inputs, bits};
  require(bits == 4 || bits == 8 || bits == 16 || bits == 32, "weights have " + std::to_string(bits) + " bits; 4, 8, 16 or 32 are expected.");
  require(!made.floating() || block == 0, "matrices of floats have no blocks.");
  require(inputs % made.block == 0 && (block == 0 || block % 32 == 0), "blocks of " + std::to_string(block) + " inputs do not divide " + std::to_string(inputs) + ".");
  require(made.floating() || inputs <= 65536, std::to_string(inputs) + " inputs could overflow a sum.");
  return made;
}

// What is done to rows, as a node says it, before they meet such a matrix.
Rounding rounding_of(const std::string& name, const Packed& matrix) {
  if (matrix.floating()) {
    require(name == "float", "activations are '" + name + "'; with a matrix of floats, float is expected.");
    return Rounding::none;
  }
  if (name == "static") return Rounding::fixed;
  if (name == "token") return Rounding::row;
  if (name == "fine") return Rounding::fine;
  require(name == "float", "activations are '" + name + "'; static, token, fine or float are expected.");
  return Rounding::exact;
}

// Matrices of `count` experts by their places among the inputs, each followed by its scales; those of floats have none.
Packed given(const Inputs& inputs, std::size_t place, Packed matrix, std::size_t count, const char* name) {
  matrix.values = inputs.data<std::uint8_t>(place, count * matrix.bytes(), name);
  if (matrix.floating()) return matrix;
  if (inputs.has(place + 1) && inputs.type(place + 1) == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16)
    matrix.short_scales = inputs.data<std::uint16_t>(place + 1, count * matrix.scale_count(), "a scale");
  else
    matrix.scales = inputs.data<float>(place + 1, count * matrix.scale_count(), "a scale");
  return matrix;
}

// x (…, inputs), matrix, its scale[, x_scale] → y (…, outputs).
class LinearKernel {
 public:
  explicit LinearKernel(const Attributes& attributes)
      : outputs_(attributes.count("N")),
        matrix_(described(attributes.count("K"), outputs_, attributes.count("block", 0), static_cast<int>(attributes.number("bits")))),
        rounding_(rounding_of(attributes.text("activations"), matrix_)) {}

  void run(OrtKernelContext* context) const {
    Inputs inputs(context);
    std::vector<std::int64_t> shape = inputs.shape(0);
    require(!shape.empty() && size(shape.back()) == matrix_.inputs, "PackedLinear: x does not have rows of " + std::to_string(matrix_.inputs) + ".");
    const std::size_t elements = inputs.elements(0);
    const auto* x = inputs.data<float>(0, elements, "x");
    const Packed matrix = given(inputs, 1, matrix_, 1, "the matrix");
    shape.back() = static_cast<std::int64_t>(outputs_);
    const float fixed = rounding_ == Rounding::fixed ? *inputs.data<float>(3, 1, "x_scale") : 0;
    linear(matrix, rounding_, fixed, x, elements / matrix.inputs, inputs.output<float>(0, shape), outputs_, parallel_in(context));
  }

 private:
  std::size_t outputs_;
  Packed matrix_;
  Rounding rounding_;
};

Experts described(const Attributes& attributes) {
  const std::size_t hidden = attributes.count("hidden"), width = attributes.count("width"), block = attributes.count("block", 0);
  const auto bits = static_cast<int>(attributes.number("bits"));
  require(hidden % kLanes == 0 && width % kLanes == 0, "hidden size and width must be multiples of 16.");
  Experts made;
  made.gate = made.up = described(hidden, width, block, bits);
  made.down = described(width, hidden, block, bits);
  made.rounding = rounding_of(attributes.text("activations"), made.down);
  return made;
}

// x, chosen, weights, gate_up (sixteen gates and their ups by turns), its scale, down, its scale[, x_scale, h_scale] → y.
class ExpertsKernel {
 public:
  explicit ExpertsKernel(const Attributes& attributes) : experts_(described(attributes)) {
    experts_.count = attributes.count("count");
    experts_.first = attributes.number("first_expert");
    experts_.gate.apart = experts_.up.apart = 2;
  }

  void run(OrtKernelContext* context) const {
    Inputs inputs(context);
    const std::vector<std::int64_t> shape = inputs.shape(0), chosen = inputs.shape(1);
    Experts made = experts_;
    require(shape.size() == 2 && size(shape[1]) == made.hidden(), "PackedExperts: x does not have rows of " + std::to_string(made.hidden()) + ".");
    require(chosen.size() == 2 && chosen[0] == shape[0], "PackedExperts: the chosen experts are not those of as many tokens.");
    const std::size_t tokens = size(shape[0]), top_k = size(chosen[1]);
    made.gate = made.up = given(inputs, 3, made.gate, made.count, "gate_up");
    made.up = made.up.behind(made.up.panel_bytes(), made.up.blocks() * kLanes);
    made.down = given(inputs, 5, made.down, made.count, "down");
    if (made.rounding == Rounding::fixed) {
      made.x_scale = inputs.data<float>(7, 1, "x_scale");
      made.h_scale = inputs.data<float>(8, made.count, "h_scale");
    }
    experts(made, inputs.data<float>(0, tokens * made.hidden(), "x"), inputs.data<std::int64_t>(1, tokens * top_k, "experts"), inputs.data<float>(2, tokens * top_k, "weights"),
            tokens, top_k, inputs.output<float>(0, shape), parallel_in(context));
  }

 private:
  Experts experts_;
};

// x (…, hidden), gate, up and down, each with its scale → y: one expert that all tokens go to.
class FeedForwardKernel {
 public:
  explicit FeedForwardKernel(const Attributes& attributes) : expert_(described(attributes)) {
    require(expert_.rounding != Rounding::fixed, "PackedFeedForward: activations cannot be static.");
    expert_.count = 1;
  }

  void run(OrtKernelContext* context) const {
    Inputs inputs(context);
    const std::vector<std::int64_t> shape = inputs.shape(0);
    Experts made = expert_;
    require(!shape.empty() && size(shape.back()) == made.hidden(), "PackedFeedForward: x does not have rows of " + std::to_string(made.hidden()) + ".");
    made.gate = given(inputs, 1, made.gate, 1, "gate");
    made.up = given(inputs, 3, made.up, 1, "up");
    made.down = given(inputs, 5, made.down, 1, "down");
    const std::size_t tokens = inputs.elements(0) / made.hidden();
    const std::vector<std::int64_t> chosen(tokens, 0);
    const std::vector<float> weights(tokens, 1.0f);
    experts(made, inputs.data<float>(0, tokens * made.hidden(), "x"), chosen.data(), weights.data(), tokens, 1, inputs.output<float>(0, shape), parallel_in(context));
  }

 private:
  Experts expert_;
};

// q, kv, start, cache, norm, cos, sin, k_up, v_up → y, the cache with the tokens' entries: over the cache itself where both are bound to one buffer.
class AttentionKernel {
 public:
  explicit AttentionKernel(const Attributes& attributes) {
    made_.heads = attributes.count("heads");
    made_.nope = attributes.count("nope");
    made_.rope = attributes.count("rope", 0);
    made_.latent = attributes.count("latent");
    made_.value = attributes.count("value");
    made_.scale = attributes.real("scale");
    made_.epsilon = attributes.real("epsilon");
    require(made_.latent % kLanes == 0 && made_.rope % 2 == 0, "LatentAttention: the latent must be a multiple of 16, and what is rotated of 2.");
    made_.k_up = described(made_.nope, made_.latent, 0, static_cast<int>(attributes.number("bits")));
    made_.v_up = described(made_.latent, made_.value, 0, static_cast<int>(attributes.number("bits")));
    require(made_.k_up.floating(), "LatentAttention: matrices are of floats.");
  }

  void run(OrtKernelContext* context) const {
    Inputs inputs(context);
    const std::vector<std::int64_t> asked = inputs.shape(0), held = inputs.shape(3), table = inputs.shape(5);
    require(asked.size() == 3 && held.size() == 3 && asked[0] == held[0] && size(held[2]) == made_.entry() && table.size() == 2,
            "LatentAttention: queries, cache or tables do not have the shapes that the node says.");
    Attended call;
    call.batch = size(asked[0]);
    call.tokens = size(asked[1]);
    call.context = size(held[1]);
    const std::size_t tokens = call.batch * call.tokens, entries = call.batch * call.context * made_.entry(), pairs = size(table[0]) * made_.rope / 2;
    call.q = inputs.data<float>(0, tokens * made_.heads * made_.query(), "q");
    call.kv = inputs.data<float>(1, tokens * made_.entry(), "kv");
    call.start = inputs.data<std::int64_t>(2, call.batch, "start");
    LatentAttention made = made_;
    made.norm = inputs.data<float>(4, made.latent, "the norm");
    made.cos = inputs.data<float>(5, pairs, "the table of cosines");
    made.sin = inputs.data<float>(6, pairs, "the table of sines");
    made.k_up.values = inputs.data<std::uint8_t>(7, made.heads * made.k_up.bytes(), "k_up");
    made.v_up.values = inputs.data<std::uint8_t>(8, made.heads * made.v_up.bytes(), "v_up");
    const auto most = static_cast<std::int64_t>(std::min(call.context, size(table[0])));
    for (std::size_t row = 0; row < call.batch; ++row)
      require(call.start[row] >= 0 && call.start[row] <= most - asked[1],
              "LatentAttention: row " + std::to_string(row) + " has tokens from position " + std::to_string(call.start[row]) + " on; cache and tables have " +
                  std::to_string(most) + ".",
              "Give a longer cache, or fewer tokens.");
    const auto* cache = inputs.data<float>(3, entries, "the cache");
    call.cache = inputs.output<float>(1, held);
    if (call.cache != cache) std::copy_n(cache, entries, call.cache);
    call.y = inputs.output<float>(0, {asked[0], asked[1], static_cast<std::int64_t>(made.heads * made.value)});
    attend(made, call, parallel_in(context));
  }

 private:
  LatentAttention made_;
};

// logits[, bias] → chosen, weights.
class RouteKernel {
 public:
  explicit RouteKernel(const Attributes& attributes) {
    params_.top_k = static_cast<int>(attributes.count("top_k"));
    params_.groups = static_cast<int>(attributes.count("groups"));
    params_.top_groups = static_cast<int>(attributes.count("top_groups"));
    params_.normalize = attributes.number("normalize") != 0;
    params_.scale = attributes.real("scale");
    const std::string scoring = attributes.text("scoring"), group_score = attributes.text("group_score");
    require(scoring == "sigmoid" || scoring == "softmax", "Route: scores are '" + scoring + "'; sigmoid or softmax are expected.");
    require(group_score == "top2" || group_score == "max", "Route: groups are scored by '" + group_score + "'; top2 or max are expected.");
    params_.scoring = scoring == "sigmoid" ? kernels::Scoring::sigmoid : kernels::Scoring::softmax;
    params_.group_score = group_score == "top2" ? kernels::GroupScore::top2 : kernels::GroupScore::max;
  }

  void run(OrtKernelContext* context) const {
    Inputs inputs(context);
    const std::vector<std::int64_t> shape = inputs.shape(0);
    require(shape.size() == 2, "Route: logits are of tokens and experts.");
    kernels::RouteParams params = params_;
    params.tokens = static_cast<int>(shape[0]);
    params.experts = static_cast<int>(shape[1]);
    kernels::plan(params);
    const float* bias = inputs.has(1) ? inputs.data<float>(1, size(shape[1]), "the bias") : nullptr;
    const std::vector<std::int64_t> made = {shape[0], params.top_k};
    kernels::reference(params, {inputs.data<float>(0, size(shape[0] * shape[1]), "logits"), bias, inputs.output<std::int64_t>(0, made), inputs.output<float>(1, made)});
  }

 private:
  kernels::RouteParams params_;
};

// An error as ONNX Runtime hands it on, its hint with it.
OrtStatusPtr status(const std::exception& problem) {
  const auto* ours = dynamic_cast<const Error*>(&problem);
  const std::string told = ours && !ours->hint().empty() ? std::string(problem.what()) + " " + ours->hint() : problem.what();
  return Ort::GetApi().CreateStatus(ORT_INVALID_ARGUMENT, told.c_str());
}

// ONNX Runtime's half of an op: names, types, and errors as statuses.
template <typename Kernel>
struct Running {
  explicit Running(const OrtKernelInfo* info) : kernel(Attributes(info)) {}
  OrtStatusPtr ComputeV2(OrtKernelContext* context) {
    try {
      kernel.run(context);
      return nullptr;
    } catch (const std::exception& problem) {
      return status(problem);
    }
  }
  Kernel kernel;
};

template <typename Kernel>
struct Op : Ort::CustomOpBase<Op<Kernel>, Running<Kernel>, true> {
  Op(const char* name_, std::vector<Type> inputs_, std::size_t required_, std::vector<Type> outputs_)
      : name(name_), inputs(std::move(inputs_)), required(required_), outputs(std::move(outputs_)) {}

  OrtStatusPtr CreateKernelV2(const OrtApi& /*api*/, const OrtKernelInfo* info, void** made) const {
    try {
      *made = std::make_unique<Running<Kernel>>(info).release();
      return nullptr;
    } catch (const std::exception& problem) {
      return status(problem);
    }
  }
  [[nodiscard]] const char* GetName() const { return name; }
  [[nodiscard]] std::size_t GetInputTypeCount() const { return inputs.size(); }
  [[nodiscard]] Type GetInputType(std::size_t place) const { return inputs[place]; }
  [[nodiscard]] OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(std::size_t place) const { return place < required ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL; }
  [[nodiscard]] std::size_t GetOutputTypeCount() const { return outputs.size(); }
  [[nodiscard]] Type GetOutputType(std::size_t place) const { return outputs[place]; }

  const char* name;
  std::vector<Type> inputs;
  std::size_t required;
  std::vector<Type> outputs;
};

void add_to(OrtSessionOptions* options) {
  static const Op<LinearKernel> linear("PackedLinear", {kFloat, kBytes, kScale, kFloat}, 2, {kFloat});
  static const Op<ExpertsKernel> experts("PackedExperts", {kFloat, kIds, kFloat, kBytes, kScale, kBytes, kScale, kFloat, kFloat}, 4, {kFloat});
  static const Op<FeedForwardKernel> feed_forward("PackedFeedForward", {kFloat, kBytes, kScale, kBytes, kScale, kBytes, kScale}, 2, {kFloat});
  static const Op<AttentionKernel> attention("LatentAttention", {kFloat, kFloat, kIds, kFloat, kFloat, kFloat, kFloat, kBytes, kBytes}, 9, {kFloat, kFloat});
  static const Op<RouteKernel> route("Route", {kFloat, kFloat}, 1, {kIds, kFloat});
  static const Ort::CustomOpDomain domain = [] {
    Ort::CustomOpDomain made(kDomain);
    made.Add(&linear);
    made.Add(&experts);
    made.Add(&feed_forward);
    made.Add(&attention);
    made.Add(&route);
    return made;
  }();
  Ort::UnownedSessionOptions(options).Add(domain);
}

}  // namespace
}  // namespace moetrt::ops

extern "C" {

// What ONNX Runtime calls when it loads the library.
MOETRT_SEEN OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (!api) return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, "the ops of moetrt were compiled for a newer ONNX Runtime");
  Ort::InitApi(api);
  try {
    moetrt::ops::add_to(options);
    return nullptr;
  } catch (const std::exception& problem) {
    return api->CreateStatus(ORT_FAIL, problem.what());
  }
}

MOETRT_SEEN const char* moetrt_ops_version() { return moetrt::ops::kVersion; }

// How integers are multiplied here, such as "plain avx2 vnni amx".
MOETRT_SEEN const char* moetrt_ops_kinds() {
  static const std::string joined = [] {
    std::string names;
    for (const std::string& name : moetrt::ops::kinds()) names += (names.empty() ? "" : " ") + name;
    return names;
  }();
  return joined.c_str();
}
}
