// Ranks that meet inside their graphs: what TensorRT has from version 11 on, apart so that the rest compiles with older headers.
#pragma once

#include <NvInfer.h>

namespace moetrt {

// Whether the headers that this library was built with have it.
bool ranks_can_meet() noexcept;

// Returns when all ranks of the stage have called it. False: TensorRT refuses; its log says why.
bool set_communicator(nvinfer1::IExecutionContext& context, void* communicator) noexcept;

}  // namespace moetrt
