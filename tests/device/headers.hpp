// The headers that the shim needs. They are compiled once, with the shim: to read them takes a third of most kernels.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <type_traits>
#include <utility>
#include <vector>
