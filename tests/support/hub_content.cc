#include "tests/support/hub_content.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "formats/base/unique_fd.h"
#include "tests/support/hub_text.h"

namespace weightfs {
namespace {

constexpr uint64_t kHashBlock = uint64_t{1} << 20;
constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;

class Digest {
 public:
  explicit Digest(const EVP_MD* kind) : context_(EVP_MD_CTX_new()) {
    EVP_DigestInit_ex(context_, kind, nullptr);
  }
  ~Digest() { EVP_MD_CTX_free(context_); }
  Digest(const Digest&) = delete;
  Digest& operator=(const Digest&) = delete;

  void Add(const void* data, size_t size) {
    EVP_DigestUpdate(context_, data, size);
  }
  std::string Finish() {
    std::array<unsigned char, EVP_MAX_MD_SIZE> out{};
    unsigned int size = 0;
    EVP_DigestFinal_ex(context_, out.data(), &size);
    return HubHex(std::span(out).first(size));
  }

 private:
  EVP_MD_CTX* context_;
};

// Bytes that cannot be read are left out, so that the digest is wrong.
void AddAll(const TestHubContent& content, Digest& digest) {
  std::vector<std::byte> block(std::min(content.size(), kHashBlock));
  for (uint64_t at = 0; at < content.size(); at += block.size()) {
    const auto part = std::span(block).first(
        std::min<uint64_t>(block.size(), content.size() - at));
    if (!content.Read(at, part)) return;
    digest.Add(part.data(), part.size());
  }
}

std::string BlobSha1(std::string_view bytes) {
  Digest digest(EVP_sha1());
  const std::string head = "blob " + std::to_string(bytes.size());
  digest.Add(head.c_str(), head.size() + 1);  // with its NUL
  digest.Add(bytes.data(), bytes.size());
  return digest.Finish();
}

class MemoryBytes : public TestHubContent {
 public:
  explicit MemoryBytes(std::string bytes)
      : TestHubContent(bytes.size()), bytes_(std::move(bytes)) {}
  bool Read(uint64_t offset, std::span<std::byte> out) const override {
    if (!out.empty()) {
      std::memcpy(out.data(), bytes_.data() + offset, out.size());
    }
    return true;
  }

 private:
  const std::string bytes_;
};

class FileBytes : public TestHubContent {
 public:
  FileBytes(UniqueFd fd, uint64_t size)
      : TestHubContent(size), fd_(std::move(fd)) {}
  int fd() const override { return fd_.get(); }
  bool Read(uint64_t offset, std::span<std::byte> out) const override {
    while (!out.empty()) {
      const ssize_t got = ::pread(fd_.get(), out.data(), out.size(),
                                  static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return false;
      out = out.subspan(static_cast<size_t>(got));
      offset += static_cast<uint64_t>(got);
    }
    return true;
  }

 private:
  const UniqueFd fd_;
};

class FunctionBytes : public TestHubContent {
 public:
  FunctionBytes(uint64_t size,
                std::function<void(uint64_t, std::span<std::byte>)> fill)
      : TestHubContent(size), fill_(std::move(fill)) {}
  bool Read(uint64_t offset, std::span<std::byte> out) const override {
    fill_(offset, out);
    return true;
  }

 private:
  const std::function<void(uint64_t, std::span<std::byte>)> fill_;
};

uint64_t PatternWord(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * kGolden;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace

std::string TestHubContent::Sha256() const {
  const MutexLock lock(mutex_);
  if (sha256_.empty()) {
    Digest digest(EVP_sha256());
    AddAll(*this, digest);
    sha256_ = digest.Finish();
  }
  return sha256_;
}

void TestHubContent::ClaimSha256(std::string hex) const {
  const MutexLock lock(mutex_);
  sha256_ = std::move(hex);
}

std::string TestHubContent::GitBlobSha1() const {
  const MutexLock lock(mutex_);
  if (sha1_.empty()) {
    Digest digest(EVP_sha1());
    const std::string head = "blob " + std::to_string(size_);
    digest.Add(head.c_str(), head.size() + 1);  // with its NUL
    AddAll(*this, digest);
    sha1_ = digest.Finish();
  }
  return sha1_;
}

std::string TestHubContent::Pointer() const {
  return "version https://git-lfs.github.com/spec/v1\noid sha256:" + Sha256() +
         "\nsize " + std::to_string(size_) + "\n";
}

std::string TestHubContent::PointerSha1() const { return BlobSha1(Pointer()); }

uint64_t TestHubContent::PointerSize() const { return Pointer().size(); }

std::string TestHubContent::ReadAll() const { return ReadRange(0, size_); }

std::string TestHubContent::ReadRange(uint64_t offset, uint64_t length) const {
  std::string bytes(length, '\0');
  if (!Read(offset, std::as_writable_bytes(std::span(bytes)))) bytes.clear();
  return bytes;
}

TestHubContentPtr MemoryContent(std::string bytes) {
  return std::make_shared<MemoryBytes>(std::move(bytes));
}

Result<TestHubContentPtr> FileContent(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat status = {};
  if (!fd.valid() || ::fstat(fd.get(), &status) != 0) {
    return Error(Code::kIo,
                 path + ": " + std::generic_category().message(errno));
  }
  return TestHubContentPtr(std::make_shared<FileBytes>(
      std::move(fd), static_cast<uint64_t>(status.st_size)));
}

TestHubContentPtr GeneratedContent(
    uint64_t size, std::function<void(uint64_t, std::span<std::byte>)> fill) {
  return std::make_shared<FunctionBytes>(size, std::move(fill));
}

void FillPattern(uint64_t seed, uint64_t offset, std::span<std::byte> out) {
  static_assert(std::endian::native == std::endian::little);
  uint64_t index = offset / 8;
  const size_t skip = offset % 8;
  if (skip != 0 && !out.empty()) {
    const uint64_t word = PatternWord(seed, index++);
    const size_t take = std::min(out.size(), 8 - skip);
    std::memcpy(out.data(), reinterpret_cast<const char*>(&word) + skip, take);
    out = out.subspan(take);
  }
  while (out.size() >= 8) {
    const uint64_t word = PatternWord(seed, index++);
    std::memcpy(out.data(), &word, 8);
    out = out.subspan(8);
  }
  if (!out.empty()) {
    const uint64_t word = PatternWord(seed, index);
    std::memcpy(out.data(), &word, out.size());
  }
}

TestHubContentPtr PatternContent(uint64_t size, uint64_t seed) {
  return GeneratedContent(size,
                          [seed](uint64_t offset, std::span<std::byte> out) {
                            FillPattern(seed, offset, out);
                          });
}

bool IsLfsByDefault(std::string_view path, uint64_t size) {
  static constexpr std::string_view kExtensions[] = {
      ".safetensors", ".bin",    ".pt",    ".pth",   ".ckpt",
      ".gguf",        ".onnx",   ".h5",    ".npz",   ".npy",
      ".msgpack",     ".pkl",    ".zip",   ".gz",    ".tar",
      ".parquet",     ".tflite", ".arrow", ".model", ".pb"};
  constexpr uint64_t kLimit = uint64_t{10} << 20;
  return size >= kLimit ||
         std::any_of(std::begin(kExtensions), std::end(kExtensions),
                     [&](std::string_view end) { return path.ends_with(end); });
}

Result<std::vector<TestHubFile>> ReadTestHubFolder(const std::string& folder) {
  namespace fs = std::filesystem;
  std::vector<TestHubFile> files;
  std::error_code error;
  fs::recursive_directory_iterator entry(
      folder, fs::directory_options::follow_directory_symlink, error);
  for (; !error && entry != fs::recursive_directory_iterator();
       entry.increment(error)) {
    if (entry->path().filename() == ".git") {
      entry.disable_recursion_pending();
      continue;
    }
    std::error_code ignored;
    if (!entry->is_regular_file(ignored)) continue;
    auto content = FileContent(entry->path().string());
    if (!content) return std::move(content).error();
    files.push_back({entry->path().lexically_relative(folder).generic_string(),
                     *std::move(content), std::nullopt});
  }
  if (error) return Error(Code::kIo, folder + ": " + error.message());
  return files;
}

}  // namespace weightfs
