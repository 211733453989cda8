// Rendezvous store and process groups.
#include "binding/addon.h"

namespace rz::binding {

void register_comm(Napi::Object) {}

}  // namespace rz::binding
