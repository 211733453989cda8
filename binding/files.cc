// Files: tensor bytes read by ranges and written by ranges, on the current stream.
#include "binding/addon.h"

namespace rz::binding {

void register_files(Napi::Object) {}

}  // namespace rz::binding
