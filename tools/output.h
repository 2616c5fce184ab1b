// Writing results: standard output, or a file that appears whole.

#ifndef WEIGHTFS_TOOLS_OUTPUT_H_
#define WEIGHTFS_TOOLS_OUTPUT_H_

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "formats/base/result.h"
#include "formats/base/unique_fd.h"

namespace weightfs {

// Writes all of it. kCancelled: the reader of a pipe went away, which is no
// error to report.
Result<> WriteAll(int fd, std::span<const std::byte> bytes);

// Prints to standard output; the exit code. If the reader went away, the
// process ends by SIGPIPE, quietly, as others do.
int PrintOut(std::string_view text);
[[noreturn]] void EndByBrokenPipe();

// A file that takes its name when it is complete. What is no regular file (a
// pipe, a device) is written as it is.
class OutputFile {
 public:
  static Result<OutputFile> Create(const std::string& path);
  OutputFile(OutputFile&&) = default;
  OutputFile& operator=(OutputFile&&) = delete;
  // Removes what was not committed.
  ~OutputFile();

  int fd() const { return fd_.get(); }
  Result<> Commit();

 private:
  OutputFile() = default;
  UniqueFd fd_;
  std::string path_;
  std::string temporary_;  // "": written as it is
};

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_OUTPUT_H_
