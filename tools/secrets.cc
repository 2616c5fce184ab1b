#include "tools/secrets.h"

#include <sys/prctl.h>
#include <sys/resource.h>

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace weightfs {

void HideProcess() {
  ::prctl(PR_SET_DUMPABLE, 0);
  // Where a sanitizer or a debugger makes it dumpable again.
  const rlimit none{0, 0};
  ::setrlimit(RLIMIT_CORE, &none);
}

void WipeTokenVariables() {
  for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
    // Not unsetenv, which moves what other threads may be reading.
    // NOLINTNEXTLINE(concurrency-mt-unsafe): see the header
    if (char* value = std::getenv(name); value != nullptr) {
      ::explicit_bzero(value, std::strlen(value));
    }
  }
}

}  // namespace weightfs
