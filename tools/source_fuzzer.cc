// Fuzzes source.h. Whatever the text: no crash; what is accepted is one that
// the Hub or the file system can be asked for, and means the same when it is
// put together again; what is refused says why, in plain text.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "cache/hub/hub_url.h"
#include "formats/text.h"
#include "tools/source.h"

namespace {

using namespace weightfs;  // NOLINT(google-build-using-namespace): a program

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckHub(const Source& source) {
  Require(CheckRepoId(source.repo).has_value());
  Require(CheckHubRepoId(source.repo).has_value());
  Require(!source.revision.empty() && IsUtf8(source.revision));
  Require(
      std::all_of(source.revision.begin(), source.revision.end(), [](char c) {
        return static_cast<unsigned char>(c) > 0x20 && c != 0x7f;
      }));
  const auto again = ParseSource("hf://" + source.repo + "@" + source.revision);
  Require(again.has_value() && again->kind == Source::Kind::kHub &&
          again->repo == source.repo && again->revision == source.revision);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(data, data + size);
  const auto source = ParseSource(text);
  if (!source.has_value()) {
    Require(source.error().code() == Code::kInvalid ||
            source.error().code() == Code::kUnsupported);
    Require(!source.error().message().empty());
    return 0;
  }
  Require(source->text == text);
  if (source->kind == Source::Kind::kHub) {
    CheckHub(*source);
  } else {
    Require(source->path == text && text.find('\0') == std::string::npos);
    Require(text.starts_with('/') || text.starts_with('.'));
  }
  return 0;
}
