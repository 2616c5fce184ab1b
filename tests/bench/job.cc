#include "tests/bench/job.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <sstream>
#include <system_error>
#include <utility>

#include "formats/base/unique_fd.h"

namespace weightfs {
namespace {

Error SystemError(const std::string& what) {
  return MakeError(Code::kIo, "{}: {}", what,
                   std::generic_category().message(errno));
}

void Unmap(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-const-cast): munmap wants it so
  ::munmap(const_cast<std::byte*>(bytes.data()), bytes.size());
}

}  // namespace

Result<MappedFile> MappedFile::Open(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat status {};
  if (!fd.valid() || ::fstat(fd.get(), &status) != 0) return SystemError(path);
  MappedFile file;
  const auto size = static_cast<size_t>(status.st_size);
  if (size == 0) return file;
  void* const begin = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (begin == MAP_FAILED) return SystemError(path);
  file.bytes_ = {static_cast<const std::byte*>(begin), size};
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : bytes_(std::exchange(other.bytes_, {})) {}
MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}
MappedFile::~MappedFile() { Unmap(bytes_); }

Result<TouchedMemory> TouchedMemory::Make(size_t size) {
  TouchedMemory memory;
  if (size == 0) return memory;
  void* const begin = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (begin == MAP_FAILED) return SystemError("memory to read into");
  memory.bytes_ = {static_cast<std::byte*>(begin), size};
  return memory;
}

TouchedMemory::TouchedMemory(TouchedMemory&& other) noexcept
    : bytes_(std::exchange(other.bytes_, {})) {}
TouchedMemory::~TouchedMemory() { Unmap(bytes_); }

Result<Job> Job::Parse(std::istream& text) {
  Job job;
  for (std::string line; std::getline(text, line);) {
    std::istringstream fields(line);
    Item item;
    std::getline(fields, item.path, '\t');
    fields >> item.offset >> item.length >> std::ws;
    std::getline(fields, item.source, '\t');
    if (!(fields >> item.source_offset)) {
      return MakeError(Code::kInvalid, "not a range to read: {}", line);
    }
    auto source = job.sources_.find(item.source);
    if (source == job.sources_.end()) {
      ASSIGN_OR_RETURN(auto mapped, MappedFile::Open(item.source));
      source = job.sources_.emplace(item.source, std::move(mapped)).first;
    }
    const uint64_t size = source->second.bytes().size();
    if (item.source_offset > size || item.length > size - item.source_offset) {
      return MakeError(Code::kInvalid, "{} has no bytes {}+{}", item.source,
                       item.source_offset, item.length);
    }
    job.bytes_ += item.length;
    job.items_.push_back(std::move(item));
  }
  if (job.items_.empty()) return Error(Code::kInvalid, "nothing to read");
  return job;
}

uint64_t Job::CountWrong(const Item& item, uint64_t at,
                         std::span<const std::byte> read) const {
  const auto wanted = sources_.at(item.source)
                          .bytes()
                          .subspan(item.source_offset + at, read.size());
  if (std::memcmp(wanted.data(), read.data(), read.size()) == 0) return 0;
  uint64_t wrong = 0;
  for (size_t i = 0; i < read.size(); ++i) wrong += wanted[i] != read[i];
  return wrong;
}

}  // namespace weightfs
