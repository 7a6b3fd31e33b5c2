// The headers that the shim needs. They are compiled once: to read them takes a third of the time of most sources.
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
