// What a kernel sees that includes nothing of CuPy; compiled once.
#include "ptx.hpp"
