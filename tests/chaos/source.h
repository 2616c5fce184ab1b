// Source: what the mounts must show: the files of a made-up model that the test
// hub serves, and its tensors in every format. The bytes are computed, so a
// model of gigabytes takes no room.
//
// Immutable once made; safe for concurrent use, and across fork().

#ifndef WEIGHTFS_TESTS_CHAOS_SOURCE_H_
#define WEIGHTFS_TESTS_CHAOS_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "formats/base/result.h"
#include "formats/view/virtual_file.h"
#include "tests/support/hub_content.h"

namespace weightfs {

class ChaosSource {
 public:
  struct File {
    std::string path;  // below the mount point
    uint64_t size = 0;
    TestHubContentPtr content;  // of a file in repo/, else null
    VirtualFile tensor;         // of a file in tensors/
  };

  // `spec` as the hub's --generate takes it. Fails, too, if a tensor's file
  // does not hold the tensor's bytes as the spec defines them.
  static Result<ChaosSource> Make(const std::string& spec);

  const std::vector<File>& files() const { return files_; }
  // Files of repo/ come first.
  size_t repo_files() const { return contents_.size(); }
  // Fills `out` with the file's bytes from `offset`. REQUIRES: the range is in
  // the file.
  void Read(const File& file, uint64_t offset, std::span<std::byte> out) const;

 private:
  Result<> AddTensors(const TestHubModelSpec& spec);
  Result<> CheckTensor(const File& file, uint64_t bytes, uint64_t seed,
                       uint64_t data_offset) const;

  std::vector<File> files_;
  std::vector<TestHubContentPtr> contents_;  // by SourceRead::object
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_CHAOS_SOURCE_H_
