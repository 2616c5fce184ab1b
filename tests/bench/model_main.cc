// weightfs-bench-model SPEC FOLDER: writes the files of a made-up model, as the
// test hub's --generate has them, to a folder.

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <vector>

#include "tests/support/hub_content.h"

namespace weightfs {
namespace {

Result<> WriteFile(const TestHubContent& content, const std::string& path) {
  std::ofstream file(path, std::ios::binary);
  std::vector<char> block(std::min<uint64_t>(content.size(), 4 << 20));
  for (uint64_t at = 0; at < content.size(); at += block.size()) {
    const auto size = static_cast<size_t>(
        std::min<uint64_t>(block.size(), content.size() - at));
    (void)content.Read(at,
                       std::as_writable_bytes(std::span(block)).first(size));
    file.write(block.data(), static_cast<std::streamsize>(size));
  }
  file.close();
  if (file) return {};
  return MakeError(Code::kIo, "{} could not be written", path);
}

Result<> Make(const std::string& text, const std::string& folder) {
  ASSIGN_OR_RETURN(const TestHubModelSpec spec, ParseTestHubModelSpec(text));
  ASSIGN_OR_RETURN(const auto files, MakeTestHubModel(spec));
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  for (const TestHubFile& file : files) {
    RETURN_IF_ERROR(WriteFile(*file.content, folder + "/" + file.path));
  }
  return {};
}

}  // namespace
}  // namespace weightfs

// NOLINTNEXTLINE(bugprone-exception-escape): a test program may end so
int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s SPEC FOLDER\n", argv[0]);
    return 2;
  }
  const auto made = weightfs::Make(argv[1], argv[2]);
  if (made) return 0;
  std::fprintf(stderr, "%s\n", made.error().ToString().c_str());
  return 1;
}
