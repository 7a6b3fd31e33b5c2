// What the driver does for other libraries: work that is a function with a copy of its data.
#pragma once
#include <cstddef>
extern "C" {
int cuda_on_cpu_submit(void* stream, const char* what, int product, void (*work)(void*), const void* data, size_t size);
int cuda_on_cpu_captures(void* stream);
void cuda_on_cpu_problem(const char* what);
}
