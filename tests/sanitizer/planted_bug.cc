// Commits, on purpose, the fault that its argument names. A ctest test of each
// sanitizer build expects the sanitizer's report, so that a build whose
// sanitizer sleeps cannot pass.

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>
#include <thread>

namespace {

// Opaque to the optimiser, which would drop a fault that it can see.
volatile int one = 1;

int HeapOverflow() {
  const auto bytes = std::make_unique<char[]>(8);
  std::memset(bytes.get(), 0, 8);
  return bytes[static_cast<size_t>(7 + one)];
}

int UseAfterFree() {
  int* value = new int(one);
  int* volatile copy = value;
  delete value;
  return *copy;
}

int Leak() {
  void* volatile block = std::malloc(100);
  std::memset(block, 0, 100);
  block = nullptr;
  return 0;
}

int SignedOverflow() {
  int value = INT_MAX;
  value += one;
  return value;
}

int BadShift() { return one << (31 + one); }

int Race() {
  int value = 0;
  std::thread other([&value] { value += one; });
  value += one;
  other.join();
  return value;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view fault = argc > 1 ? argv[1] : "";
  if (fault == "heap-buffer-overflow") return HeapOverflow();
  if (fault == "heap-use-after-free") return UseAfterFree();
  if (fault == "leak") return Leak();
  if (fault == "signed integer overflow") return SignedOverflow();
  if (fault == "shift exponent") return BadShift();
  if (fault == "data race") return Race();
  std::fprintf(stderr, "unknown fault\n");
  return 2;
}
