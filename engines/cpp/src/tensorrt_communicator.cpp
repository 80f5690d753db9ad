#include "tensorrt_communicator.hpp"

namespace moetrt {

#if NV_TENSORRT_MAJOR >= 11

bool ranks_can_meet() noexcept { return true; }
bool set_communicator(nvinfer1::IExecutionContext& context, void* communicator) noexcept { return context.setCommunicator(communicator); }

#else

bool ranks_can_meet() noexcept { return false; }
bool set_communicator(nvinfer1::IExecutionContext&, void*) noexcept { return false; }

#endif

}  // namespace moetrt
