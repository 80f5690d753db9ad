// What tests ask of the library that stands for libnvinfer, libcudart and libnccl: exported beside their functions.
#pragma once

extern "C" {
// The calls since the last time, a line each, in the order in which they came.
const char* fake_calls();
// How many devices there are.
void fake_devices(int count);
// What newer headers declare as IExecutionContext::setCommunicator.
bool fake_set_communicator(void* context, void* communicator);
}
