// What the test hub serves: immutable bytes by offset, from memory, from a file
// on disk, or from a function (so that a file of gigabytes takes no room).
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_TESTS_SUPPORT_HUB_CONTENT_H_
#define WEIGHTFS_TESTS_SUPPORT_HUB_CONTENT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/base/mutex.h"
#include "formats/base/result.h"

namespace weightfs {

class TestHubContent {
 public:
  explicit TestHubContent(uint64_t size) : size_(size) {}
  virtual ~TestHubContent() = default;
  TestHubContent(const TestHubContent&) = delete;
  TestHubContent& operator=(const TestHubContent&) = delete;

  uint64_t size() const { return size_; }
  // Fills `out` from `offset`; false if the bytes cannot be had. REQUIRES:
  // offset + out.size() <= size().
  virtual bool Read(uint64_t offset, std::span<std::byte> out) const = 0;
  // The open file that has the same bytes at the same offsets; -1: none has.
  virtual int fd() const { return -1; }

  // Hex digests, computed at first use and kept.
  std::string Sha256() const EXCLUDES(mutex_);
  std::string GitBlobSha1() const EXCLUDES(mutex_);  // of the bytes themselves
  // What LFS keeps in git instead of them, and its length.
  std::string PointerSha1() const;
  uint64_t PointerSize() const;
  // Takes the word of the caller instead of reading the bytes: a wrong digest
  // to test verification, or a file too huge to hash.
  void ClaimSha256(std::string hex) const EXCLUDES(mutex_);

  std::string ReadAll() const;
  std::string ReadRange(uint64_t offset, uint64_t length) const;

 private:
  std::string Pointer() const;

  const uint64_t size_;
  mutable Mutex mutex_;
  mutable std::string sha256_ GUARDED_BY(mutex_);
  mutable std::string sha1_ GUARDED_BY(mutex_);
};

using TestHubContentPtr = std::shared_ptr<const TestHubContent>;

TestHubContentPtr MemoryContent(std::string bytes);
// Reads the file when asked; its size is taken once, here.
Result<TestHubContentPtr> FileContent(const std::string& path);
// `fill(offset, out)` gives the bytes at `offset`, always the same.
TestHubContentPtr GeneratedContent(
    uint64_t size, std::function<void(uint64_t, std::span<std::byte>)> fill);

// Bytes that look random and are a function of (seed, offset) alone: word i
// (little-endian u64 at offset 8 * i) is splitmix64's output for state
// seed + (i + 1) * 0x9e3779b97f4a7c15.
void FillPattern(uint64_t seed, uint64_t offset, std::span<std::byte> out);
TestHubContentPtr PatternContent(uint64_t size, uint64_t seed);

struct TestHubFile {
  std::string path;
  TestHubContentPtr content;
  // As the Hub does it: by extension or size (IsLfsByDefault).
  std::optional<bool> lfs = {};
};

// *.safetensors, *.bin, *.pt, *.gguf and the like, or 10 MiB and more.
bool IsLfsByDefault(std::string_view path, uint64_t size);

// A made-up safetensors model: data bytes are FillPattern's (seed + shard) at
// the offset within the shard's data section.
struct TestHubModelSpec {
  uint64_t tensors = 100;
  uint64_t shards = 1;  // > 1: model-0000x-of-0000y and an index
  uint64_t tensor_bytes = 1 << 20;
  std::string dtype = "F32";
  uint64_t seed = 1;
  // False: made-up sha256s, so that nothing of a huge model is read to list it.
  bool hashed = true;
};
// model.safetensors or shards and index, and config.json. Tensor i is
// "model.layers.<i>.weight", of shape [elements]; tensors go to shards in runs.
// kInvalid for an unknown dtype or a size that it does not divide.
Result<std::vector<TestHubFile>> MakeTestHubModel(const TestHubModelSpec& spec);
// "tensors=100,shards=1,size=1G,dtype=F32,seed=1,hashed=1": `size` is the whole
// model's, `tensor_bytes` one tensor's; K, M, G are powers of 1024.
Result<TestHubModelSpec> ParseTestHubModelSpec(const std::string& text);

// Every regular file under `folder`, hidden ones (".git") left out.
Result<std::vector<TestHubFile>> ReadTestHubFolder(const std::string& folder);

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_HUB_CONTENT_H_
