// The one place that includes napi.h. Its macros are set in CMakeLists.txt.
#pragma once
#include <napi.h>
