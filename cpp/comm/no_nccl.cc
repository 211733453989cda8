// In place of the nccl files where the addon is built without CUDA: then there are no streams of devices either.
#include "comm/device_collectives.h"
#include "core/error.h"

namespace rz::comm {

std::unique_ptr<DeviceCollectives> connect_devices(ProcessGroup& group, std::shared_ptr<JobState>, Stream*, Stream*) {
  fail("ERR_CUDA_UNAVAILABLE", "group ", group.name(), " cannot connect devices: this addon was built without CUDA");
}

}  // namespace rz::comm
