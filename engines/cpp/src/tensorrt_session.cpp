#include "tensorrt_session.hpp"

#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "cuda.hpp"
#include "library.hpp"
#include "moetrt/error.hpp"
#include "ports.hpp"
#include "tensorrt_communicator.hpp"

namespace moetrt {
namespace {

using nvinfer1::Dims;
using nvinfer1::OptProfileSelector;
using nvinfer1::TensorIOMode;

static_assert(cuda::kToDevice == cudaMemcpyHostToDevice && cuda::kToHost == cudaMemcpyDeviceToHost);
static_assert(cuda::kApart == cudaStreamNonBlocking && cuda::kThisThread == cudaStreamCaptureModeThreadLocal);

constexpr std::size_t kKept = 8;  // shapes of run whose buffers are kept

// A file's bytes, read as they are looked at.
class Mapped {
 public:
  explicit Mapped(const std::filesystem::path& path) : size_(std::filesystem::file_size(path)) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    data_ = file < 0 ? MAP_FAILED : mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
    if (file >= 0) ::close(file);
    if (data_ == MAP_FAILED) throw Error("cannot read " + path.string() + ".");
  }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;
  ~Mapped() { munmap(data_, size_); }

  [[nodiscard]] const void* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return size_; }

 private:
  std::size_t size_;
  void* data_;
};

// Gives a library to a runtime, whose registry no other runtime sees: before it deserialises, and once for each. False: TensorRT refuses; its log says why.
bool load_plugins(nvinfer1::IRuntime& runtime, const std::filesystem::path& library) {
  static std::mutex one_at_a_time;  // ranks come at once, which neither TensorRT nor a library of plugins need expect
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  return runtime.getPluginRegistry().loadLibrary(library.c_str()) != nullptr;
}

nvinfer1::DataType type_of(const std::string& dtype) {
  static const std::map<std::string, nvinfer1::DataType> known{
      {"float32", nvinfer1::DataType::kFLOAT}, {"float16", nvinfer1::DataType::kHALF}, {"bfloat16", nvinfer1::DataType::kBF16}, {"int64", nvinfer1::DataType::kINT64}};
  const auto found = known.find(dtype);
  if (found == known.end()) throw Error("there is no dtype '" + dtype + "' among engines.", "Known are float32, float16, bfloat16 and int64.");
  return found->second;
}

Dims dims(const std::vector<std::int64_t>& shape) {
  Dims made{};
  if (shape.size() > static_cast<std::size_t>(Dims::MAX_DIMS)) throw Error("TensorRT has no tensors of " + std::to_string(shape.size()) + " axes.");
  made.nbDims = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), made.d);
  return made;
}

std::string shown(const Dims& shape) {
  std::string text;
  for (int axis = 0; axis < shape.nbDims; ++axis) text += (axis ? "x" : "") + std::to_string(shape.d[axis]);
  return text;
}

bool is_within(const Dims& low, const Dims& shape, const Dims& high) {
  for (int axis = 0; axis < shape.nbDims; ++axis)
    if (shape.d[axis] < low.d[axis] || shape.d[axis] > high.d[axis]) return false;
  return low.nbDims == shape.nbDims && high.nbDims == shape.nbDims;
}

class TensorRtSession : public Session {
 public:
  TensorRtSession(const Opening& opening, const Seat& seat);
  ~TensorRtSession() override;

  void run(Values& values, const States& states) override;
  [[nodiscard]] std::shared_ptr<Memory> memory() const override { return memory_; }

 private:
  // What a run of one shape is bound to, from run to run.
  struct Prepared {
    int profile = 0;
    std::map<std::string, Dims> shapes;                // of inputs and states
    Values inputs, results, hosted;                    // on the device; and what the host gets of them
    std::vector<std::pair<std::string, void*>> bound;  // every tensor's address, a state's twice
    bool one_token = false;
    bool captures = true;         // until it turns out that TensorRT cannot
    bool ran = false;             // since it was bound: TensorRT readies itself in the first run
    std::shared_ptr<void> graph;  // that run, captured
  };
  struct Context {
    std::unique_ptr<nvinfer1::IExecutionContext> context;
    Prepared* bound = nullptr;
  };

  void check(int code, const std::string& what) const { cuda::check(code, ports_.where + ": " + what); }
  [[noreturn]] void refused(const std::string& what) const { throw Error(ports_.where + ": TensorRT refuses " + what + ": " + TensorRt::get().log.take()); }
  void require_tensor(const Tensor& tensor, TensorIOMode mode) const;
  void make_contexts();
  [[nodiscard]] int profile_for(const std::map<std::string, Dims>& shapes) const;
  Prepared& prepare(const Values& values, const States& states);
  void bind(Prepared& step);
  void launch(Prepared& step);
  void capture(Prepared& step);
  void enqueue(const Prepared& step);

  Opening opening_;
  Ports ports_;
  Seat seat_;
  const cuda::Functions& calls_ = cuda::Functions::get();
  std::shared_ptr<cuda::DeviceMemory> memory_;
  std::shared_ptr<void> stream_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::shared_ptr<std::byte> scratch_;  // of all contexts, which run one after another
  std::vector<Context> contexts_;       // one a profile
  std::uint64_t generation_ = 0;        // of the communicators that the contexts have
  std::uint64_t bound_to_ = 0;
  std::map<std::vector<std::int64_t>, Prepared> prepared_;
};

TensorRtSession::TensorRtSession(const Opening& opening, const Seat& seat)
    : opening_(opening), ports_(opening_.signature, opening.graph.string()), seat_(seat), memory_(std::make_shared<cuda::DeviceMemory>(seat.device)) {
  check(calls_.set_device(seat_.device), "CUDA device " + std::to_string(seat_.device));
  cuda::Stream stream = nullptr;
  check(calls_.create_stream(&stream, cuda::kApart), "no stream");
  stream_ = std::shared_ptr<void>(stream, [this](void* made) { calls_.destroy_stream(made); });
  TensorRt& library = TensorRt::get();
  runtime_.reset(static_cast<nvinfer1::IRuntime*>(library.create_runtime(&library.log, NV_TENSORRT_VERSION)));
  if (!runtime_) refused("a runtime");
  if (!seat_.plugins.empty() && !load_plugins(*runtime_, seat_.plugins)) refused("the plugins of " + seat_.plugins.string());
  {
    const Mapped plan(opening.graph);
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
  }
  if (!engine_)
    throw Error("TensorRT cannot open " + ports_.where + ": " + library.log.take(),
                "Engines run on the GPU generation and the version of TensorRT that they were built with; build them here.");
  for (const Tensor& input : opening_.signature.inputs) require_tensor(input, TensorIOMode::kINPUT);
  for (const Tensor& output : opening_.signature.outputs) require_tensor(output, TensorIOMode::kOUTPUT);
  const auto told = opening_.signature.inputs.size() + opening_.signature.outputs.size();
  if (static_cast<std::size_t>(engine_->getNbIOTensors()) != told)
    throw Error(ports_.where + " has " + std::to_string(engine_->getNbIOTensors()) + " inputs and outputs, its manifest " + std::to_string(told) + ".", "Build it again.");
  make_contexts();
}

TensorRtSession::~TensorRtSession() {
  calls_.set_device(seat_.device);
  prepared_.clear();
  contexts_.clear();
}

void TensorRtSession::require_tensor(const Tensor& tensor, TensorIOMode mode) const {
  const char* name = tensor.name.c_str();
  const char* kind = mode == TensorIOMode::kINPUT ? "input '" : "output '";
  if (engine_->getTensorIOMode(name) != mode) throw Error(ports_.where + " has no " + kind + tensor.name + "', which its manifest names.", "Build it again.");
  if (engine_->getTensorDataType(name) != type_of(tensor.dtype))
    throw Error(ports_.where + " has the " + kind + tensor.name + "' in another dtype than " + tensor.dtype + ".", "Build it again.");
}

// All ranks of a stage come here at once: giving a context its communicator returns when each of them has.
void TensorRtSession::make_contexts() {
  prepared_.clear();
  contexts_.clear();
  const std::int64_t room = engine_->getDeviceMemorySizeV2();
  if (room > 0 && !scratch_) scratch_ = memory_->allocate(static_cast<std::size_t>(room));
  const Ring::Member member = seat_.ring ? seat_.ring->member(seat_.place) : Ring::Member{nullptr, 0};
  for (int profile = 0; profile < engine_->getNbOptimizationProfiles(); ++profile) {
    const std::string what = "a context for profile " + std::to_string(profile);
    Context made{std::unique_ptr<nvinfer1::IExecutionContext>(engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED)), nullptr};
    if (!made.context) refused(what);
    if (room > 0) made.context->setDeviceMemoryV2(scratch_.get(), room);
    if (!made.context->setOptimizationProfileAsync(profile, static_cast<cudaStream_t>(stream_.get()))) refused(what);
    check(calls_.wait(stream_.get()), what);
    if (seat_.ring && !set_communicator(*made.context, member.communicator)) refused("the communicator of " + what);
    contexts_.push_back(std::move(made));
  }
  generation_ = member.generation;
}

// Of the profiles that take these shapes the one that reaches least far.
int TensorRtSession::profile_for(const std::map<std::string, Dims>& shapes) const {
  std::optional<std::pair<double, int>> best;
  std::string why;
  for (int profile = 0; profile < static_cast<int>(contexts_.size()); ++profile) {
    double reach = 0;
    bool takes = true;
    for (const auto& [name, shape] : shapes) {
      const Dims low = engine_->getProfileShape(name.c_str(), profile, OptProfileSelector::kMIN), high = engine_->getProfileShape(name.c_str(), profile, OptProfileSelector::kMAX);
      for (int axis = 0; axis < high.nbDims; ++axis) reach += static_cast<double>(high.d[axis]);
      if (is_within(low, shape, high)) continue;
      if (takes) why += "; profile " + std::to_string(profile) + " takes " + name + " from " + shown(low) + " to " + shown(high) + ", not " + shown(shape);
      takes = false;
    }
    if (takes && (!best || reach < best->first)) best = {reach, profile};
  }
  if (!best) throw Error(ports_.where + " has no profile for this step" + why + ".", "Build with a larger --max-context or --max-batch.");
  return best->second;
}

TensorRtSession::Prepared& TensorRtSession::prepare(const Values& values, const States& states) {
  const std::vector<std::int64_t> key = ports_.key(values);
  if (bound_to_ != states.id || prepared_.size() > kKept) {
    for (Context& context : contexts_) context.bound = nullptr;
    prepared_.clear();
    bound_to_ = states.id;
  }
  const auto there = prepared_.find(key);
  if (there != prepared_.end()) return there->second;
  const Sizes sizes = ports_.sizes(values);
  Prepared made;
  made.one_token = Ports::is_one_token(sizes);
  for (const Tensor* input : ports_.inputs) made.shapes[input->name] = dims(values.at(input->name).shape());
  for (const auto& [input, output] : ports_.states) made.shapes[input] = dims(ports_.state(input, states.buffers).shape());
  made.profile = profile_for(made.shapes);
  for (const auto& [input, output] : ports_.states)
    for (const std::string& name : {input, output}) made.bound.emplace_back(name, ports_.state(input, states.buffers).data());
  for (const Tensor* input : ports_.inputs) {
    const Array& place = made.inputs.emplace(input->name, Array(input->dtype, values.at(input->name).shape(), memory_)).first->second;
    made.bound.emplace_back(input->name, place.data());
  }
  for (const Tensor* result : ports_.results) {
    const Array& place = made.results.emplace(result->name, Array(result->dtype, ports_.shape(*result, sizes), memory_)).first->second;
    if (opening_.hosted.count(result->name)) made.hosted.emplace(result->name, Array(result->dtype, place.shape()));
    made.bound.emplace_back(result->name, place.data());
  }
  return prepared_.emplace(key, std::move(made)).first->second;
}

// A context takes one step's shapes and addresses at a time; what was captured of another's is of no use after that.
void TensorRtSession::bind(Prepared& step) {
  Context& context = contexts_[static_cast<std::size_t>(step.profile)];
  if (context.bound == &step) return;
  if (context.bound) context.bound->graph = nullptr;
  context.bound = nullptr;
  step.ran = false;
  for (const auto& [name, shape] : step.shapes)
    if (!context.context->setInputShape(name.c_str(), shape)) refused(name + " of " + shown(shape));
  for (const auto& [name, address] : step.bound)
    if (!context.context->setTensorAddress(name.c_str(), address)) refused("the address of " + name);
  context.bound = &step;
}

void TensorRtSession::enqueue(const Prepared& step) {
  if (seat_.ring) (void)seat_.ring->member(seat_.place);  // not into what is gone by now
  if (!contexts_[static_cast<std::size_t>(step.profile)].context->enqueueV3(static_cast<cudaStream_t>(stream_.get()))) refused("to run");
}

void TensorRtSession::launch(Prepared& step) {
  if (step.one_token && step.ran && step.captures && !step.graph) capture(step);
  if (step.graph)
    check(calls_.launch(step.graph.get(), stream_.get()), "a captured step");
  else
    enqueue(step);
  step.ran = true;
}

// Where TensorRT cannot be captured, as where the host decides within a step, it goes on kernel by kernel.
void TensorRtSession::capture(Prepared& step) {
  cuda::Graph graph = nullptr;
  check(calls_.begin_capture(stream_.get(), cuda::kThisThread), "capturing");
  const bool enqueued = contexts_[static_cast<std::size_t>(step.profile)].context->enqueueV3(static_cast<cudaStream_t>(stream_.get()));
  const int ended = calls_.end_capture(stream_.get(), &graph);
  const std::shared_ptr<void> held(graph, [this](void* made) { made ? calls_.destroy_graph(made) : 0; });
  cuda::Replay replay = nullptr;
  step.captures = enqueued && ended == 0 && graph && calls_.instantiate(&replay, graph, 0) == 0;
  if (step.captures)
    step.graph = std::shared_ptr<void>(replay, [this](void* made) { calls_.destroy_replay(made); });
  else
    calls_.last_error();  // told and forgotten: what comes next is to tell of itself
}

void TensorRtSession::run(Values& values, const States& states) {
  check(calls_.set_device(seat_.device), "CUDA device " + std::to_string(seat_.device));
  if (seat_.ring && seat_.ring->member(seat_.place).generation != generation_) make_contexts();
  Prepared& step = prepare(values, states);
  bind(step);
  for (const auto& [name, place] : step.inputs) {
    const Array value = values.at(name).host();
    check(calls_.copy_on(place.data(), value.data(), value.bytes(), cuda::kToDevice, stream_.get()), "copying " + name);
  }
  launch(step);
  for (const auto& [name, array] : step.hosted) check(calls_.copy_on(array.data(), step.results.at(name).data(), array.bytes(), cuda::kToHost, stream_.get()), "copying " + name);
  check(calls_.wait(stream_.get()), "running");
  for (const auto& [name, array] : step.results) values[name] = step.hosted.count(name) ? step.hosted.at(name) : array;
}

}  // namespace

void TensorRtLog::log(Severity severity, const char* message) noexcept {
  if (severity > Severity::kERROR) return;
  const std::lock_guard<std::mutex> lock(lock_);
  told_ += (told_.empty() ? "" : "; ") + std::string(message);
}

std::string TensorRtLog::take() {
  const std::lock_guard<std::mutex> lock(lock_);
  const std::string told = std::exchange(told_, {});
  return told.empty() ? "it gives no reason." : told + ".";
}

TensorRt& TensorRt::get() {
  static TensorRt found;
  static const bool loaded = [] {
    const std::string version = std::to_string(NV_TENSORRT_MAJOR);
    const Library library("TensorRT", {"libnvinfer.so." + version},
                          "This was built with the headers of TensorRT " + version + ". Put that library's folder on LD_LIBRARY_PATH; the Python wheel has it as tensorrt_libs.");
    library.find("createInferRuntime_INTERNAL", found.create_runtime);
    return true;
  }();
  (void)loaded;
  return found;
}

std::unique_ptr<Session> open_tensorrt(const Opening& opening, const Seat& seat) { return std::make_unique<TensorRtSession>(opening, seat); }

}  // namespace moetrt
