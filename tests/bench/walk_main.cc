// weightfs-bench-walk FOLDER: lists a folder and all below it, as `ls -R`, then
// asks for the attributes of each file; prints how long both took, in JSON.

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

double Since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

struct Found {
  std::vector<std::string> folders;
  std::vector<std::string> files;
};

bool List(const std::string& folder, Found& found) {
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(::opendir(folder.c_str()),
                                                   &::closedir);
  if (stream == nullptr) return false;
  // NOLINTNEXTLINE(concurrency-mt-unsafe): a stream of this call's own
  while (const dirent* entry = ::readdir(stream.get())) {
    const std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    auto& list = entry->d_type == DT_DIR ? found.folders : found.files;
    list.push_back(folder + "/" + name);
  }
  return true;
}

int Run(const std::string& top) {
  Found found;
  found.folders.push_back(top);
  auto begin = Clock::now();
  for (size_t i = 0; i < found.folders.size(); ++i) {
    const std::string folder = found.folders[i];  // the list grows
    if (!List(folder, found)) {
      std::perror(folder.c_str());
      return 1;
    }
  }
  const double listing = Since(begin);
  begin = Clock::now();
  uint64_t bytes = 0;
  for (const std::string& file : found.files) {
    struct stat status {};
    if (::lstat(file.c_str(), &status) != 0) {
      std::perror(file.c_str());
      return 1;
    }
    bytes += static_cast<uint64_t>(status.st_size);
  }
  const double stats = Since(begin);
  fmt::print(R"({{"folders":{},"files":{},"bytes":{},"list_seconds":{:.6f},)"
             R"("stat_seconds":{:.6f}}})"
             "\n",
             found.folders.size(), found.files.size(), bytes, listing, stats);
  return 0;
}

}  // namespace

// NOLINTNEXTLINE(bugprone-exception-escape): a test program may end so
int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
    return 2;
  }
  return Run(argv[1]);
}
